// The torch operations of skytrain::; importing the module registers them. This file alone sees torch, and checks.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <Python.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "attention.h"
#include "host_adamw.h"

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

const std::pair<const char*, Isa> kIsas[] = {{"avx512", Isa::kAvx512}, {"avx2", Isa::kAvx2}, {"plain", Isa::kPlain}};

std::vector<std::string> host_isas() {
  std::vector<std::string> names;
  for (const auto& [name, isa] : kIsas)
    if (runs_here(isa)) names.push_back(name);
  return names;
}

Isa isa_of(std::optional<std::string_view> wanted) {
  for (const auto& [name, isa] : kIsas)
    if (runs_here(isa) && (!wanted || *wanted == name)) return isa;
  TORCH_CHECK(false, "host_adamw: this processor does not run ", *wanted);
}

// The step's numbers; nothing where it is to be skipped.
std::optional<HostStep> step_of(const Tensor& steps, const Tensor& corrections, const Tensor& divisor,
                                const Tensor& skip, double rate, double beta1, double beta2, double eps) {
  for (const Tensor& x : {steps, corrections, divisor, skip})
    TORCH_CHECK(x.device().is_cpu() && x.dtype() == at::kFloat && x.is_contiguous() &&
                    x.numel() == (x.is_same(corrections) ? 2 : 1),
                "host_adamw: steps, divisor and skip must be fp32 scalars in host memory, corrections fp32 [2]");
  if (skip.data_ptr<float>()[0] > 0) return std::nullopt;
  const float* correction = corrections.data_ptr<float>();
  return HostStep{.scale = 1.0f / divisor.data_ptr<float>()[0],
                  .rate = static_cast<float>(rate),
                  .eps = static_cast<float>(eps),
                  .rest1 = static_cast<float>(1.0 - beta1),
                  .rest2 = static_cast<float>(1.0 - beta2),
                  .first = correction[0],
                  .root = correction[1],
                  .step = static_cast<int64_t>(steps.data_ptr<float>()[0])};
}

// Shape, dtype and place of one of parameter i's tensors.
void check_part(const Tensor& x, const char* what, size_t i, at::IntArrayRef shape, at::ScalarType dtype) {
  TORCH_CHECK(x.device().is_cpu() && x.is_contiguous() && x.dtype() == dtype && x.sizes() == shape, "host_adamw: ",
              what, " ", i, " is ", x.dtype(), " ", x.sizes(), " with strides ", x.strides(), " on ", x.device(),
              "; it must be contiguous ", dtype, " ", shape, " in host memory");
}

// Elements [0, n) of the lists belong together; the scales of fp32 moments are not looked at, and `out` may be empty.
HostTensor tensor_of(size_t i, at::TensorList weights, at::TensorList gradients, at::TensorList exp_avg,
                     at::TensorList exp_avg_sq, at::TensorList exp_avg_scale, at::TensorList exp_avg_sq_scale,
                     at::TensorList out, const float* decays, int64_t first) {
  const Tensor& w = weights[i];
  const bool coded = exp_avg[i].dtype() == at::kChar, narrow = gradients[i].dtype() == at::kBFloat16;
  check_part(w, "weight", i, w.sizes(), at::kFloat);
  check_part(gradients[i], "gradient", i, w.sizes(), narrow ? at::kBFloat16 : at::kFloat);
  check_part(exp_avg[i], "exp_avg", i, w.sizes(), coded ? at::kChar : at::kFloat);
  check_part(exp_avg_sq[i], "exp_avg_sq", i, w.sizes(), coded ? at::kByte : at::kFloat);
  if (!out.empty()) check_part(out[i], "out", i, w.sizes(), at::kBFloat16);
  HostTensor t{.weight = w.data_ptr<float>(),
               .gradient = gradients[i].data_ptr(),
               .bf16_gradient = narrow,
               .exp_avg = exp_avg[i].data_ptr(),
               .exp_avg_sq = exp_avg_sq[i].data_ptr(),
               .exp_avg_scale = nullptr,
               .exp_avg_sq_scale = nullptr,
               .out = out.empty() ? nullptr : static_cast<uint16_t*>(out[i].data_ptr()),
               .decay = decays[i],
               .elements = w.numel(),
               .columns = w.numel(),
               .number = first + static_cast<int64_t>(i)};
  if (!coded) return t;
  TORCH_CHECK(w.dim() > 0, "host_adamw: weight ", i, " is a scalar, which has no 8-bit moments");
  std::vector<int64_t> scales = w.sizes().vec();
  t.columns = scales.back();
  scales.back() = t.groups_per_row();
  check_part(exp_avg_scale[i], "exp_avg_max", i, scales, at::kFloat);
  check_part(exp_avg_sq_scale[i], "exp_avg_sq_max", i, scales, at::kFloat);
  t.exp_avg_scale = exp_avg_scale[i].data_ptr<float>();
  t.exp_avg_sq_scale = exp_avg_sq_scale[i].data_ptr<float>();
  return t;
}

void host_adamw_op(at::TensorList weights, at::TensorList gradients, at::TensorList exp_avg, at::TensorList exp_avg_sq,
                   at::TensorList exp_avg_scale, at::TensorList exp_avg_sq_scale, at::TensorList out,
                   const Tensor& decays, const Tensor& steps, const Tensor& corrections, const Tensor& divisor,
                   const Tensor& skip, double rate, double beta1, double beta2, double eps, int64_t first,
                   std::optional<std::string_view> isa_name) {
  const size_t count = weights.size();
  for (size_t size : {gradients.size(), exp_avg.size(), exp_avg_sq.size(), exp_avg_scale.size(),
                      exp_avg_sq_scale.size(), out.empty() ? count : out.size()})
    TORCH_CHECK(size == count, "host_adamw: ", count, " weights, but a list of ", size, " tensors");
  TORCH_CHECK(decays.device().is_cpu() && decays.dtype() == at::kFloat && decays.is_contiguous() &&
                  decays.numel() == static_cast<int64_t>(count),
              "host_adamw: decays must be a fp32 vector in host memory with a number for each of ", count, " weights");
  std::vector<HostTensor> tensors;
  std::vector<int64_t> starts{0};  // of each tensor's groups among all groups
  for (size_t i = 0; i < count; ++i) {
    tensors.push_back(tensor_of(i, weights, gradients, exp_avg, exp_avg_sq, exp_avg_scale, exp_avg_sq_scale, out,
                                decays.data_ptr<float>(), first));
    starts.push_back(starts.back() + tensors.back().groups());
  }
  const Isa isa = isa_of(isa_name);
  const auto step = step_of(steps, corrections, divisor, skip, rate, beta1, beta2, eps);
  if (!step) return;
  // A thread's share is even in elements, whatever the tensors' sizes; 256 groups take it about 20 us.
  at::parallel_for(0, starts.back(), 256, [&](int64_t begin, int64_t end) {
    size_t i = std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin() - 1;
    for (; begin < end; begin = starts[++i])
      host_adamw(tensors[i], *step, begin - starts[i], std::min(end, starts[i + 1]) - starts[i], isa);
  });
}

}  // namespace
}  // namespace skytrain

TORCH_LIBRARY_FRAGMENT(skytrain, m) {
  m.def("attention_cpu(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, float scale) -> (Tensor, Tensor)");
  m.def(
      "attention_cpu_backward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
      "Tensor cu_seqlens, float scale) -> (Tensor, Tensor, Tensor)");
  m.def(
      "host_adamw(Tensor(a!)[] weights, Tensor[] gradients, Tensor(b!)[] exp_avg, Tensor(c!)[] exp_avg_sq, "
      "Tensor(d!)[] exp_avg_max, Tensor(e!)[] exp_avg_sq_max, Tensor(f!)[] out, Tensor decays, Tensor steps, "
      "Tensor corrections, Tensor divisor, Tensor skip, float rate, float beta1, float beta2, float eps, "
      "int first, str? isa=None) -> ()");
  m.def("host_isas() -> str[]", &skytrain::host_isas);
}

TORCH_LIBRARY_IMPL(skytrain, CPU, m) {
  m.impl("attention_cpu", &skytrain::attention_forward_op);
  m.impl("attention_cpu_backward", &skytrain::attention_backward_op);
  m.impl("host_adamw", &skytrain::host_adamw_op);
}

static PyModuleDef module = {PyModuleDef_HEAD_INIT, "skytrain._C", nullptr, -1, nullptr};
PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
