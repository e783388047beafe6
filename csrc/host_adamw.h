// AdamW on tensors in host memory, on plain pointers; see host_adamw.cpp.
#pragma once
#include <cstdint>

namespace skytrain {

constexpr int64_t kGroup = 128;  // consecutive columns of a row that share a scale, and the unit in which work is split

// What a step has in common for all tensors; names as in kernels/adamw.py.
struct HostStep {
  float scale;         // 1 / divisor of the gradients
  float rate, eps;
  float rest1, rest2;  // 1 - beta
  float first, root;   // bias corrections: 1 / (1 - beta1^step), 1 / sqrt(1 - beta2^step)
  int64_t step;        // from 1; it sets the dither
};

// One parameter. Its moments are fp32, and then the scales are null and `columns` is `elements`; or codes.
struct HostTensor {
  float* weight;
  const void* gradient;
  bool bf16_gradient;  // else fp32
  void *exp_avg, *exp_avg_sq;             // float, or int8_t and uint8_t
  float *exp_avg_scale, *exp_avg_sq_scale;  // [rows, ceil(columns / kGroup)]
  uint16_t* out;  // the new weights rounded to bf16, or null
  float decay;
  int64_t elements, columns;
  int64_t number;  // its place in the list of all parameters; it sets the dither

  int64_t groups_per_row() const { return (columns + kGroup - 1) / kGroup; }
  int64_t groups() const { return columns ? elements / columns * groups_per_row() : 0; }
};

enum class Isa { kPlain, kAvx2, kAvx512 };
bool runs_here(Isa isa);

// Updates groups [begin, end) of the tensor.
void host_adamw(const HostTensor& tensor, const HostStep& step, int64_t begin, int64_t end, Isa isa);

}  // namespace skytrain
