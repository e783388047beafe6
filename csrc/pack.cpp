// The document packer of the step plan.
//
// A micro-batch takes as long as its slowest rank, so a step takes the sum over micro-batches of the largest row cost,
// here called the micro-batch's *level*. Levels may differ; the rows of one micro-batch should not.
//   1. Take the fewest micro-batches that the tokens need, and one more where no packing into them is found.
//   2. Deal the documents to rows, longest first, each to the cheapest row with room. Where that leaves a document
//      over, balance tokens alone until every row is within the limit.
//   3. Sort the rows by cost and cut them into micro-batches of `ranks` rows: no other grouping has lower levels.
//   4. Exchange up to two documents of a slowest row for up to two of another row, choosing what leaves the most
//      margin below both levels, until nothing helps or the effort is spent.
// All in integers, with every tie to the first, because skytrain/data/packing.py repeats these steps in numpy and must
// find the same slots.
#include "pack.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

namespace skytrain {
namespace {

constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max() / 2;
constexpr int64_t kEnd = std::numeric_limits<int64_t>::max();
constexpr int64_t kEffort = 4;      // parts compared in the search, times documents, times rows
constexpr size_t kPairsUpTo = 6;    // documents in a row beyond which single ones are fine enough to balance it
constexpr int kCloseEnough = 11;    // the search ends within 2^-11 (0.05%) of a perfect balance

// Documents sorted longest first, with the weight to balance: their cost, or their tokens.
struct Documents {
  const std::vector<int64_t>& weight;
  const std::vector<int64_t>& length;
  int size() const { return static_cast<int>(weight.size()); }
};

// Gives each document a row.
class Dealer {
 public:
  Dealer(const Documents& documents, int rows, int64_t limit)
      : documents_(documents), limit_(limit), row_of_(documents.size(), -1), weight_(rows), length_(rows) {}

  // A document heavier than the average row sets the level of its whole micro-batch. So that the other micro-batches
  // can be lower, that one takes the longest documents, and its rows are filled up to the level.
  void fill_heavy_groups(int ranks) {
    const int rows = static_cast<int>(weight_.size());
    int64_t left = std::accumulate(documents_.weight.begin(), documents_.weight.end(), int64_t{0});
    int i = 0;
    while (first_row_ + ranks < rows && i < documents_.size() &&
           documents_.weight[i] > left / (rows - first_row_)) {
      const int64_t level = documents_.weight[i];
      const int end = first_row_ + ranks;
      for (int r = first_row_; r < end && i < documents_.size(); ++r, i = next_free(i)) left -= put(i, r);
      for (int r = first_row_; r < end; ++r)
        for (int j = i; j < documents_.size(); ++j)
          if (row_of_[j] < 0 && weight_[r] + documents_.weight[j] <= level && fits(j, r)) left -= put(j, r);
      i = next_free(i);
      first_row_ = end;
    }
  }

  // The rest, each to the lightest row with room. Empty if a document finds no room.
  std::vector<int> deal() {
    for (int i = next_free(0); i < documents_.size(); i = next_free(i)) {
      int lightest = -1;
      for (int r = first_row_; r < static_cast<int>(weight_.size()); ++r)
        if ((lightest < 0 || weight_[r] < weight_[lightest]) && fits(i, r)) lightest = r;
      if (lightest < 0) return {};
      put(i, lightest);
    }
    return row_of_;
  }

 private:
  bool fits(int i, int r) const { return length_[r] + documents_.length[i] <= limit_; }

  int next_free(int i) const {
    while (i < documents_.size() && row_of_[i] >= 0) ++i;
    return i;
  }

  int64_t put(int i, int r) {
    row_of_[i] = r;
    weight_[r] += documents_.weight[i];
    length_[r] += documents_.length[i];
    return documents_.weight[i];
  }

  const Documents documents_;
  const int64_t limit_;
  int first_row_ = 0;
  std::vector<int> row_of_;
  std::vector<int64_t> weight_, length_;
};

// What a row can give in an exchange: nothing, one document, or two. -1 is no document.
struct Part {
  int64_t weight, length;
  int first, second;
};

struct Row {
  int64_t weight = 0, length = 0;
  int group = 0;
  std::vector<int> documents;
  std::vector<Part> parts;  // by weight, then as listed; after them one of weight kEnd
};

struct Exchange {
  int64_t margin = 0;
  int row = -1;
  Part give, take;
};

// Rows in groups of equal size, and the search that lowers the sum of the groups' levels.
class Balance {
 public:
  Balance(const Documents& documents, const std::vector<int>& row_of, int groups, int group_size, int64_t limit)
      : documents_(documents), limit_(limit), group_size_(group_size),
        effort_(kEffort * documents.size() * groups * group_size), rows_(groups * group_size),
        order_(groups * group_size), levels_(groups) {
    for (Row& row : rows_) row.documents.reserve(2 + row_of.size() / rows_.size());
    // Lightest first, so that list_parts finds its parts nearly sorted.
    for (int i = documents_.size() - 1; i >= 0; --i) {
      Row& row = rows_[row_of[i]];
      row.weight += documents_.weight[i];
      row.length += documents_.length[i];
      row.documents.push_back(i);
    }
    for (Row& row : rows_) list_parts(row);
  }

  // Lowers the sum of levels to `goal`, or as far as it can; returns it.
  int64_t search(int64_t goal) {
    const int groups = static_cast<int>(levels_.size());
    int64_t sum = group(), before;
    do {
      before = sum;
      for (int g = groups - 1, stuck = 0; stuck < groups && sum > goal && effort_ > 0;) {
        const int64_t level = levels_[g];
        if (lower(g)) {
          stuck = 0;
          sum -= level - levels_[g];
        } else {
          ++stuck;
          g = (g + groups - 1) % groups;
        }
      }
      sum = group();
    } while (sum < before && sum > goal && effort_ > 0);
    return sum;
  }

  // Each document's row, rows numbered by group, heaviest first.
  std::vector<int> row_of() const {
    std::vector<int> result(documents_.size());
    for (int k = 0; k < static_cast<int>(order_.size()); ++k)
      for (int i : rows_[order_[k]].documents) result[i] = k;
    return result;
  }

 private:
  int64_t group() {
    std::iota(order_.begin(), order_.end(), 0);
    std::stable_sort(order_.begin(), order_.end(),
                     [this](int a, int b) { return rows_[a].weight > rows_[b].weight; });
    for (int k = 0; k < static_cast<int>(order_.size()); ++k) {
      rows_[order_[k]].group = k / group_size_;
      if (k % group_size_ == 0) levels_[k / group_size_] = rows_[order_[k]].weight;
    }
    return std::accumulate(levels_.begin(), levels_.end(), int64_t{0});
  }

  void list_parts(Row& row) const {
    const auto& [weight, length] = documents_;
    row.parts.clear();
    row.parts.reserve(2 + row.documents.size() + kPairsUpTo * (kPairsUpTo - 1) / 2);
    row.parts.push_back({0, 0, -1, -1});
    for (int i : row.documents) row.parts.push_back({weight[i], length[i], i, -1});
    if (row.documents.size() <= kPairsUpTo)
      for (size_t k = 0; k < row.documents.size(); ++k)
        for (size_t l = k + 1; l < row.documents.size(); ++l) {
          const int i = row.documents[k], j = row.documents[l];
          row.parts.push_back({weight[i] + weight[j], length[i] + length[j], i, j});
        }
    // A stable insertion sort: std::stable_sort would allocate a buffer for every such handful.
    for (size_t k = 1; k < row.parts.size(); ++k)
      for (size_t l = k; l > 0 && row.parts[l].weight < row.parts[l - 1].weight; --l)
        std::swap(row.parts[l], row.parts[l - 1]);
    row.parts.push_back({kEnd, 0, -1, -1});
  }

  // One exchange for the heaviest row of group g; false if none helps.
  bool lower(int g) {
    int top = 0;
    while (rows_[top].group != g || rows_[top].weight != levels_[g]) ++top;
    const Exchange best = best_exchange(top);
    if (best.row < 0) return false;
    Row &a = rows_[top], &b = rows_[best.row];
    for (int i : {best.give.first, best.give.second}) move(i, a, b);
    for (int i : {best.take.first, best.take.second}) move(i, b, a);
    list_parts(a);
    list_parts(b);
    // Only this level can change: b ends below its own.
    levels_[g] = 0;
    for (const Row& row : rows_)
      if (row.group == g) levels_[g] = std::max(levels_[g], row.weight);
    return true;
  }

  Exchange best_exchange(int top) {
    Exchange best;
    const Row& a = rows_[top];
    for (int r = 0; r < static_cast<int>(rows_.size()); ++r) {
      const Row& b = rows_[r];
      const int64_t slack = levels_[b.group] - b.weight;
      if (r == top || slack / 2 <= best.margin) continue;
      const Part *low = b.parts.data(), *end = low + b.parts.size() - 1;
      effort_ -= static_cast<int64_t>(a.parts.size() + b.parts.size()) - 2;
      for (const Part* give = a.parts.data(); give->weight != kEnd; ++give) {
        // A larger margin than the best needs best.margin < give - take < slack - best.margin: a window that moves up.
        while (low->weight <= give->weight - slack + best.margin) ++low;
        if (low == end) break;
        for (const Part* take = low; take->weight < give->weight - best.margin; ++take) {
          const int64_t moved = give->weight - take->weight, tokens = give->length - take->length;
          const int64_t margin = std::min(moved, slack - moved);
          if (margin > best.margin && b.length + tokens <= limit_ && a.length - tokens <= limit_)
            best = {margin, r, *give, *take};
        }
      }
    }
    return best;
  }

  void move(int i, Row& from, Row& to) {
    if (i < 0) return;
    from.documents.erase(std::find(from.documents.begin(), from.documents.end(), i));
    to.documents.push_back(i);
    from.weight -= documents_.weight[i];
    to.weight += documents_.weight[i];
    from.length -= documents_.length[i];
    to.length += documents_.length[i];
  }

  const Documents documents_;
  const int64_t limit_;
  const int group_size_;
  int64_t effort_;
  std::vector<Row> rows_;
  std::vector<int> order_;       // rows, heaviest first
  std::vector<int64_t> levels_;  // of each group
};

// Rows by tokens alone, for steps so full that dealing by cost leaves a document over. Empty if a row stays too long.
std::vector<int> balance_tokens(const std::vector<int64_t>& length, int rows, int64_t max_tokens) {
  const Documents tokens{length, length};
  Balance balance(tokens, Dealer(tokens, rows, kUnlimited).deal(), 1, rows, kUnlimited);
  return balance.search(max_tokens) <= max_tokens ? balance.row_of() : std::vector<int>{};
}

}  // namespace

void pack_step(const int64_t* lengths, const int64_t* costs, int64_t n, int64_t ranks, int64_t max_tokens,
               int64_t* slots) {
  std::vector<int> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [lengths](int a, int b) { return lengths[a] > lengths[b]; });
  std::vector<int64_t> length(n), cost(n);
  for (int64_t k = 0; k < n; ++k) {
    length[k] = lengths[order[k]];
    cost[k] = costs[order[k]];
  }
  const Documents documents{cost, length};
  const int64_t ideal = std::accumulate(costs, costs + n, int64_t{0}) / ranks;
  const int64_t in_all_rows = ranks * max_tokens;
  std::vector<int> row_of;
  int64_t micro_batches = (std::accumulate(lengths, lengths + n, int64_t{0}) + in_all_rows - 1) / in_all_rows;
  for (;; ++micro_batches) {
    const int rows = static_cast<int>(micro_batches * ranks);
    Dealer dealer(documents, rows, max_tokens);
    dealer.fill_heavy_groups(static_cast<int>(ranks));
    row_of = dealer.deal();
    if (row_of.empty()) row_of = balance_tokens(length, rows, max_tokens);
    if (!row_of.empty()) break;
  }
  Balance balance(documents, row_of, static_cast<int>(micro_batches), static_cast<int>(ranks), max_tokens);
  balance.search(ideal + (ideal >> kCloseEnough));
  row_of = balance.row_of();
  for (int64_t k = 0; k < n; ++k) slots[order[k]] = row_of[k];
}

}  // namespace skytrain
