// Causal attention by blocks of 64 queries x 64 keys with a running softmax (FlashAttention-2's recurrence), in fp32.
// Included by attention.cpp once for each instruction set, in a namespace of its own; so no include guard here.
//
// Every product has the form C += A B with B's rows contiguous, taken 4 rows x 16 columns at a time in registers.
// Tiles are zero-padded to 16 columns, so there are no edge cases in the columns.

constexpr int64_t kBlock = 64;
typedef float Lanes __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t IntLanes __attribute__((vector_size(32)));
constexpr int64_t kLanes = 8;
constexpr int64_t kColumns = 2 * kLanes;

INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
INLINE Lanes& lanes(float* p) { return *reinterpret_cast<Lanes*>(p); }
INLINE const Lanes& lanes(const float* p) { return *reinterpret_cast<const Lanes*>(p); }

// e^x for x <= 0 to about 1 ulp: 2^n times the Taylor series of e^r, |r| <= ln(2) / 2. NaN stays NaN.
INLINE Lanes exp_lanes(Lanes x) {
  const Lanes low = Lanes{} - 87.0f;   // e^-87 is the smallest result that is not subnormal
  x = x < low ? low : x;               // this order keeps NaN, which the trainer's guard must see
  const float shift = 12582912.0f;     // 1.5 x 2^23: adding it rounds to an integer, held in the low bits
  const Lanes shifted = x * 1.44269504f + shift;
  const Lanes n = shifted - shift;
  const Lanes r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  Lanes e = Lanes{} + 1.0f / 5040;
  e = e * r + 1.0f / 720;
  e = e * r + 1.0f / 120;
  e = e * r + 1.0f / 24;
  e = e * r + 1.0f / 6;
  e = e * r + 0.5f;
  e = e * r + 1.0f;
  e = e * r + 1.0f;
  IntLanes bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + (127 << 23);  // the shift's own bits fall out at the top
  Lanes power;
  std::memcpy(&power, &bits, sizeof bits);
  return e * power;
}

// C[rows, columns] (+)= A[rows, k] B[k, columns] for k in [k0, k1); A's element (i, k) is a[i * a_row + k * a_k].
template <int kRows>
INLINE void multiply_rows(const float* a, int64_t a_row, int64_t a_k, const float* b, int64_t ldb, float* c,
                          int64_t ldc, int64_t columns, int64_t k0, int64_t k1, bool add) {
  for (int64_t j = 0; j < columns; j += kColumns) {
    Lanes left[kRows], right[kRows];
    for (int i = 0; i < kRows; ++i) left[i] = right[i] = Lanes{};
    for (int64_t k = k0; k < k1; ++k) {
      const Lanes b_left = lanes(b + k * ldb + j), b_right = lanes(b + k * ldb + j + kLanes);
      for (int i = 0; i < kRows; ++i) {
        const float x = a[i * a_row + k * a_k];
        left[i] += x * b_left;
        right[i] += x * b_right;
      }
    }
    for (int i = 0; i < kRows; ++i) {
      // Added last and not first: a sum of 64-term sums is more exact than one long sum.
      Lanes &c_left = lanes(c + i * ldc + j), &c_right = lanes(c + i * ldc + j + kLanes);
      c_left = add ? c_left + left[i] : left[i];
      c_right = add ? c_right + right[i] : right[i];
    }
  }
}

// What the causal mask leaves of a product on a diagonal block, where scores with column > row are absent.
enum class Part {
  kAll,
  kColumnsUpToRow,  // the result is a lower triangle
  kKUpToRow,        // A is a lower triangle
  kKFromRow,        // A is an upper triangle (a lower one, transposed)
};

INLINE void multiply(const float* a, int64_t a_row, int64_t a_k, const float* b, int64_t ldb, float* c, int64_t ldc,
                     int64_t rows, int64_t columns, int64_t k, bool add, Part part) {
  for (int64_t i = 0; i < rows; i += 4) {
    const int64_t n = part == Part::kColumnsUpToRow ? std::min(columns, round_up(i + 4, kColumns)) : columns;
    const int64_t k_begin = part == Part::kKFromRow ? i : 0;
    const int64_t k_end = part == Part::kKUpToRow ? std::min(k, i + 4) : k;
    const float* ai = a + i * a_row;
    float* ci = c + i * ldc;
    for (int64_t k0 = k_begin; k0 < k_end; k0 += kBlock) {
      const int64_t k1 = std::min(k_end, k0 + kBlock);
      const bool more = add || k0 > k_begin;
      switch (std::min<int64_t>(rows - i, 4)) {
        case 4: multiply_rows<4>(ai, a_row, a_k, b, ldb, ci, ldc, n, k0, k1, more); break;
        case 3: multiply_rows<3>(ai, a_row, a_k, b, ldb, ci, ldc, n, k0, k1, more); break;
        case 2: multiply_rows<2>(ai, a_row, a_k, b, ldb, ci, ldc, n, k0, k1, more); break;
        default: multiply_rows<1>(ai, a_row, a_k, b, ldb, ci, ldc, n, k0, k1, more);
      }
    }
  }
}

// tile[i, :] = scale * source rows, zero-padded to `width` columns.
INLINE void pack(const Rows& source, int64_t token, int64_t head, int64_t n, int64_t dim, int64_t width, float scale,
                 float* tile) {
  for (int64_t i = 0; i < n; ++i) {
    const float* row = source.at(token + i, head);
    float* to = tile + i * width;
    for (int64_t d = 0; d < dim; ++d) to[d] = scale * row[d];
    for (int64_t d = dim; d < width; ++d) to[d] = 0.0f;
  }
}

// tile[d, j] = source row j's element d; columns from n on are zero.
INLINE void pack_transposed(const Rows& source, int64_t token, int64_t head, int64_t n, int64_t dim, float* tile) {
  for (int64_t j = 0; j < n; ++j) {
    const float* row = source.at(token + j, head);
    for (int64_t d = 0; d < dim; ++d) tile[d * kBlock + j] = row[d];
  }
  for (int64_t d = 0; d < dim; ++d)
    for (int64_t j = n; j < kBlock; ++j) tile[d * kBlock + j] = 0.0f;
}

// Scratch that a thread keeps: allocating it anew for each document would cost more than a short document.
struct Scratch {
  std::vector<float> memory;
  int64_t used = 0;

  explicit Scratch() : memory(9 * kBlock * kMaxHeadDim + 4 * kBlock * kBlock) {}
  float* tile(int64_t columns) {
    used += kBlock * columns;
    return memory.data() + used - kBlock * columns;
  }
};

Scratch& scratch() {
  thread_local Scratch s;
  s.used = 0;
  return s;
}

// One row of a block of scores becomes probabilities under the running maximum `top` and total `sum`.
// Returns what earlier results of this row must be multiplied by. Scores from `valid` on become 0.
INLINE float softmax_row(float* s, int64_t valid, float& top, float& sum) {
  const int64_t padded = round_up(valid, kLanes);
  for (int64_t j = valid; j < padded; ++j) s[j] = -INFINITY;
  Lanes tops = Lanes{} + top;
  for (int64_t j = 0; j < padded; j += kLanes) tops = lanes(s + j) > tops ? lanes(s + j) : tops;
  float new_top = top;
  for (int64_t j = 0; j < kLanes; ++j) new_top = std::max(new_top, tops[j]);
  Lanes total = {};
  for (int64_t j = 0; j < padded; j += kLanes) total += lanes(s + j) = exp_lanes(lanes(s + j) - new_top);
  float new_sum = 0.0f;
  for (int64_t j = 0; j < kLanes; ++j) new_sum += total[j];
  std::fill(s + valid, s + kBlock, 0.0f);
  const float factor = std::exp(top - new_top);
  top = new_top;
  sum = sum * factor + new_sum;
  return factor;
}

inline void forward(const Attention& a, int64_t begin, int64_t end, int64_t head) {
  const int64_t dim = a.head_dim, width = round_up(dim, kColumns), kv_head = head / a.group;
  Scratch& memory = scratch();
  float *q = memory.tile(width), *kt = memory.tile(width), *v = memory.tile(width), *o = memory.tile(width);
  float* s = memory.tile(kBlock);
  float top[kBlock], sum[kBlock];
  for (int64_t i0 = begin; i0 < end; i0 += kBlock) {
    const int64_t m = std::min(kBlock, end - i0);
    pack(a.q, i0, head, m, dim, width, a.scale, q);
    std::fill(top, top + m, -INFINITY);
    std::fill(sum, sum + m, 0.0f);
    std::fill(o, o + m * width, 0.0f);
    for (int64_t j0 = begin; j0 <= i0; j0 += kBlock) {
      const bool diagonal = j0 == i0;
      const int64_t n = std::min(kBlock, end - j0);
      pack_transposed(a.k, j0, kv_head, n, dim, kt);
      pack(a.v, j0, kv_head, n, dim, width, 1.0f, v);
      multiply(q, width, 1, kt, kBlock, s, kBlock, m, round_up(n, kColumns), dim, false,
               diagonal ? Part::kColumnsUpToRow : Part::kAll);
      for (int64_t i = 0; i < m; ++i) {
        const float factor = softmax_row(s + i * kBlock, diagonal ? i + 1 : n, top[i], sum[i]);
        if (j0 > begin)
          for (int64_t d = 0; d < width; d += kLanes) lanes(o + i * width + d) *= factor;
      }
      multiply(s, kBlock, 1, v, width, o, width, m, width, n, true, diagonal ? Part::kKUpToRow : Part::kAll);
    }
    for (int64_t i = 0; i < m; ++i) {
      float* row = a.out.at(i0 + i, head);
      for (int64_t d = 0; d < dim; ++d) row[d] = o[i * width + d] / sum[i];
      a.lse[head * a.tokens + i0 + i] = top[i] + std::log(sum[i]);
    }
  }
}

// With P = exp(S - lse), delta = rowsum(dO * O): dV = P^T dO, dS = P * (dO V^T - delta), dQ = scale dS K,
// dK = scale dS^T Q; `q` holds scale Q.
inline void backward(const Attention& a, const Rows& d_out, const Rows& dq, const Rows& dk, const Rows& dv,
                                int64_t begin, int64_t end, int64_t kv_head) {
  const int64_t dim = a.head_dim, width = round_up(dim, kColumns);
  Scratch& memory = scratch();
  float *q = memory.tile(width), *k = memory.tile(width), *kt = memory.tile(width), *vt = memory.tile(width);
  float *go = memory.tile(width), *gq = memory.tile(width), *gk = memory.tile(width), *gv = memory.tile(width);
  float *p = memory.tile(kBlock), *ds = memory.tile(kBlock);
  for (int64_t j0 = begin; j0 < end; j0 += kBlock) {
    const int64_t n = std::min(kBlock, end - j0), columns = round_up(n, kColumns);
    pack(a.k, j0, kv_head, n, dim, width, 1.0f, k);
    pack_transposed(a.k, j0, kv_head, n, dim, kt);
    pack_transposed(a.v, j0, kv_head, n, dim, vt);
    std::fill(gk, gk + n * width, 0.0f);
    std::fill(gv, gv + n * width, 0.0f);
    for (int64_t head = kv_head * a.group; head < (kv_head + 1) * a.group; ++head) {
      for (int64_t i0 = j0; i0 < end; i0 += kBlock) {
        const bool diagonal = i0 == j0;
        const int64_t m = std::min(kBlock, end - i0);
        const Part scores = diagonal ? Part::kColumnsUpToRow : Part::kAll;
        const Part by_key = diagonal ? Part::kKFromRow : Part::kAll;
        pack(a.q, i0, head, m, dim, width, a.scale, q);
        pack(d_out, i0, head, m, dim, width, 1.0f, go);
        multiply(q, width, 1, kt, kBlock, p, kBlock, m, columns, dim, false, scores);
        multiply(go, width, 1, vt, kBlock, ds, kBlock, m, columns, dim, false, scores);
        for (int64_t i = 0; i < m; ++i) {
          const int64_t valid = diagonal ? i + 1 : n, padded = round_up(valid, kLanes);
          const float* out = a.out.at(i0 + i, head);
          float delta = 0.0f;
          for (int64_t d = 0; d < dim; ++d) delta += go[i * width + d] * out[d];
          const float lse = a.lse[head * a.tokens + i0 + i];
          float *p_row = p + i * kBlock, *ds_row = ds + i * kBlock;
          for (int64_t j = 0; j < padded; j += kLanes) {
            lanes(p_row + j) = exp_lanes(lanes(p_row + j) - lse);
            lanes(ds_row + j) = lanes(p_row + j) * (lanes(ds_row + j) - delta);
          }
          std::fill(p_row + valid, p_row + kBlock, 0.0f);
          std::fill(ds_row + valid, ds_row + kBlock, 0.0f);
        }
        multiply(p, 1, kBlock, go, width, gv, width, n, width, m, true, by_key);
        multiply(ds, 1, kBlock, q, width, gk, width, n, width, m, true, by_key);
        multiply(ds, kBlock, 1, k, width, gq, width, m, width, n, false, diagonal ? Part::kKUpToRow : Part::kAll);
        for (int64_t i = 0; i < m; ++i) {
          float* row = dq.at(i0 + i, head);
          // The first block of keys reaches every query, so dq needs no zeros before.
          for (int64_t d = 0; d < dim; ++d) row[d] = (j0 > begin ? row[d] : 0.0f) + a.scale * gq[i * width + d];
        }
      }
    }
    for (int64_t j = 0; j < n; ++j) {
      std::memcpy(dk.at(j0 + j, kv_head), gk + j * width, dim * sizeof(float));
      std::memcpy(dv.at(j0 + j, kv_head), gv + j * width, dim * sizeof(float));
    }
  }
}
