// The torch operations of skytrain::; importing the module registers them. This file alone sees torch, and checks.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <Python.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "attention.h"

namespace skytrain {
namespace {

using at::Tensor;

// fp32 with a contiguous last dimension, copied only where it must be.
Tensor widened(const Tensor& x) {
  Tensor wide = x.to(at::kFloat);
  return wide.stride(2) == 1 ? wide : wide.contiguous();
}

Rows rows_of(const Tensor& x) { return {x.data_ptr<float>(), x.stride(0), x.stride(1)}; }

void check(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens) {
  TORCH_CHECK(q.dim() == 3 && k.dim() == 3 && v.sizes() == k.sizes() && k.size(0) == q.size(0) &&
                  k.size(2) == q.size(2) && k.size(1) > 0 && q.size(1) % k.size(1) == 0,
              "attention: q ", q.sizes(), ", k ", k.sizes(), " and v ", v.sizes(),
              " must be [tokens, heads, head_dim] and twice [tokens, kv_heads, head_dim], kv_heads dividing heads");
  TORCH_CHECK(q.size(2) <= kMaxHeadDim, "attention: head_dim ", q.size(2), " is above ", kMaxHeadDim);
  TORCH_CHECK(q.dtype() == k.dtype() && q.dtype() == v.dtype() && q.is_floating_point() && q.dtype() != at::kDouble,
              "attention: q, k and v must share one dtype, fp32 or a narrower one");
  TORCH_CHECK(cu_seqlens.dim() == 1 && cu_seqlens.dtype() == at::kInt && cu_seqlens.is_contiguous() &&
                  cu_seqlens.size(0) > 0,
              "attention: cu_seqlens must be a contiguous int32 vector");
  const int32_t* bounds = cu_seqlens.data_ptr<int32_t>();
  TORCH_CHECK(bounds[0] >= 0 && bounds[cu_seqlens.size(0) - 1] <= q.size(0) &&
                  std::is_sorted(bounds, bounds + cu_seqlens.size(0)),
              "attention: cu_seqlens must rise within [0, ", q.size(0), "]");
}

// Calls f(begin, end, head) for each document and each of `heads`. Heads vary slowest: a thread's share is a range
// of heads with all their documents, which is even where a range of documents is not.
template <class F>
void for_each_document(const Tensor& cu_seqlens, int64_t heads, const F& f) {
  const int32_t* bounds = cu_seqlens.data_ptr<int32_t>();
  const int64_t documents = cu_seqlens.size(0) - 1;
  at::parallel_for(0, heads * documents, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) f(bounds[i % documents], bounds[i % documents + 1], i / documents);
  });
}

// Uninitialised where documents cover every token, else zeros: tokens of no document get an output of 0.
Tensor new_like(const Tensor& x, const Tensor& cu_seqlens) {
  const int32_t* bounds = cu_seqlens.data_ptr<int32_t>();
  const bool covered = bounds[0] == 0 && bounds[cu_seqlens.size(0) - 1] == x.size(0);
  return covered ? at::empty(x.sizes(), at::kFloat) : at::zeros(x.sizes(), at::kFloat);
}

std::tuple<Tensor, Tensor> attention_forward_op(const Tensor& q, const Tensor& k, const Tensor& v,
                                                const Tensor& cu_seqlens, double scale) {
  check(q, k, v, cu_seqlens);
  const Tensor wide_q = widened(q), wide_k = widened(k), wide_v = widened(v);
  const Tensor out = new_like(q, cu_seqlens), lse = at::zeros({q.size(1), q.size(0)}, at::kFloat);
  const Attention a{rows_of(wide_q), rows_of(wide_k), rows_of(wide_v),         rows_of(out), lse.data_ptr<float>(),
                    q.size(0),       q.size(2),       q.size(1) / k.size(1), static_cast<float>(scale)};
  for_each_document(cu_seqlens, q.size(1),
                    [&](int64_t begin, int64_t end, int64_t head) { attention_forward(a, begin, end, head); });
  return {out.to(q.scalar_type()), lse};
}

std::tuple<Tensor, Tensor, Tensor> attention_backward_op(const Tensor& d_out, const Tensor& q, const Tensor& k,
                                                         const Tensor& v, const Tensor& out, const Tensor& lse,
                                                         const Tensor& cu_seqlens, double scale) {
  check(q, k, v, cu_seqlens);
  TORCH_CHECK(d_out.sizes() == q.sizes() && out.sizes() == q.sizes() && lse.is_contiguous() &&
                  lse.dtype() == at::kFloat && lse.numel() == q.size(0) * q.size(1),
              "attention: d_out, out and lse must be those of the forward pass");
  const Tensor wide_q = widened(q), wide_k = widened(k), wide_v = widened(v), wide_out = widened(out),
               wide_d_out = widened(d_out);
  const Tensor dq = new_like(q, cu_seqlens), dk = new_like(k, cu_seqlens), dv = new_like(v, cu_seqlens);
  const Attention a{rows_of(wide_q), rows_of(wide_k), rows_of(wide_v),         rows_of(wide_out), lse.data_ptr<float>(),
                    q.size(0),       q.size(2),       q.size(1) / k.size(1), static_cast<float>(scale)};
  const Rows d_out_rows = rows_of(wide_d_out), dq_rows = rows_of(dq), dk_rows = rows_of(dk), dv_rows = rows_of(dv);
  for_each_document(cu_seqlens, k.size(1), [&](int64_t begin, int64_t end, int64_t kv_head) {
    attention_backward(a, d_out_rows, dq_rows, dk_rows, dv_rows, begin, end, kv_head);
  });
  const auto dtype = q.scalar_type();
  return {dq.to(dtype), dk.to(dtype), dv.to(dtype)};
}

}  // namespace
}  // namespace skytrain

TORCH_LIBRARY_FRAGMENT(skytrain, m) {
  m.def("attention_cpu(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, float scale) -> (Tensor, Tensor)");
  m.def(
      "attention_cpu_backward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
      "Tensor cu_seqlens, float scale) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(skytrain, CPU, m) {
  m.impl("attention_cpu", &skytrain::attention_forward_op);
  m.impl("attention_cpu_backward", &skytrain::attention_backward_op);
}

static PyModuleDef module = {PyModuleDef_HEAD_INIT, "skytrain._C", nullptr, -1, nullptr};
PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
