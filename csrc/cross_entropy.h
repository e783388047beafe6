// Cross-entropy of one row of logits, on plain pointers; see cross_entropy.cpp.
#pragma once
#include <cstdint>

namespace skytrain {

struct RowLoss {
  float loss, correct, lse;  // correct: 1 where the label is the first of the largest logits
};

// z: `columns` logits, which become their gradient, coefficient x (softmax - onehot), or with no `gradient` are left as
// exponentials. label: in [0, columns).
RowLoss cross_entropy_row(float* z, int64_t columns, int64_t label, float coefficient, bool gradient);

}  // namespace skytrain
