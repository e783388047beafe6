// Packed causal attention of one document and one head, on plain pointers; see attention.cpp.
#pragma once
#include <cstdint>

namespace skytrain {

// fp32 view of [tokens, heads, head_dim] whose last dimension is contiguous.
struct Rows {
  float* data;
  int64_t token_stride;
  int64_t head_stride;

  float* at(int64_t token, int64_t head) const { return data + token * token_stride + head * head_stride; }
};

struct Attention {
  Rows q, k, v, out;
  float* lse;  // [heads, tokens]: log of the sum of exp(score) over each query's keys
  int64_t tokens, head_dim, group;  // group: query heads that share one key/value head
  float scale;
};

constexpr int64_t kMaxHeadDim = 256;

// Tokens [begin, end) of the row are one document. Forward takes a query head and writes `out` and `lse`;
// backward takes a key/value head and writes dk and dv of it and dq of its group.
void attention_forward(const Attention& a, int64_t begin, int64_t end, int64_t head);
void attention_backward(const Attention& a, const Rows& d_out, const Rows& dq, const Rows& dk, const Rows& dv,
                        int64_t begin, int64_t end, int64_t kv_head);

}  // namespace skytrain
