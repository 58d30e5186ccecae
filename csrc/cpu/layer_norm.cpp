// layer norm on the CPU: checks, outputs, ranges of tokens, threads

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include "cpu/parallel.h"
#include "cpu/shares.h"
#include "sizes.h"

namespace sola {
namespace {

constexpr const char* kOp = "layer_norm";
// tokens of a task: their share of the parameters' gradients is far smaller than they are
constexpr int64_t kRange = 128;
// what a channel of a token costs, in scalar operations
constexpr double kForwardOps = 8, kBackwardOps = 20;

int64_t ranges_of(const LayerNormParams& p) { return (p.N + kRange - 1) / kRange; }

// f(task, place, index) for every range
template <class F>
void over_ranges(const LayerNormParams& p, Dtype dtype, double ops, const F& f) {
  const size_t scratch = kernels().layer_norm.scratch(p, {dtype, nullptr, nullptr});
  run_tasks(ranges_of(p), ops * double(kRange * p.C), dtype, nullptr, scratch, [&](int64_t index, const Task& task) {
    f(task, Place{0, 0, index * kRange, std::min((index + 1) * kRange, p.N)}, index);
  });
}

at::Tensor forward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps) {
  check_layer_norm(kOp, x, weight, bias, eps);
  auto out = at::empty(x.sizes(), x.options());
  if (x.numel() == 0) return out;
  const at::Tensor tokens = as_rows(x), w = weight.contiguous(), b = bias.contiguous();
  LayerNormParams p = layer_norm_params(tokens, w, eps);
  p.bias = b.data_ptr();
  p.out = rows_of(out);
  over_ranges(p, dtype_of(x), kForwardOps,
              [&](const Task& task, Place place, int64_t) { kernels().layer_norm.forward(p, task, place); });
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& grad_out, const at::Tensor& x,
                                                        const at::Tensor& weight, const at::Tensor& bias, double eps) {
  check_layer_norm(kOp, x, weight, bias, eps);
  auto grad_x = at::empty(x.sizes(), x.options());
  if (x.numel() == 0) return {grad_x, at::zeros_like(weight), at::zeros_like(bias)};
  const at::Tensor tokens = as_rows(x), grads = as_rows(grad_out), w = weight.contiguous();
  LayerNormParams p = layer_norm_params(tokens, w, eps);
  p.grad_out = rows_of(grads);
  p.grad_x = rows_of(grad_x);
  const auto sums = at::empty({ranges_of(p), 2 * p.C}, x.options().dtype(accumulate_type(x)));
  p.sums = sums.data_ptr();
  over_ranges(p, dtype_of(x), kBackwardOps, [&](const Task& task, Place place, int64_t index) {
    kernels().layer_norm.backward(p, task, place, index);
  });
  const at::Tensor total = add_up(sums).to(weight.scalar_type()).view({2, p.C});
  return {grad_x, total[0], total[1].clone()};
}

}  // namespace

TORCH_LIBRARY_IMPL(sola, CPU, m) {
  m.impl("layer_norm", &forward);
  m.impl("layer_norm_backward", &backward);
}

}  // namespace sola
