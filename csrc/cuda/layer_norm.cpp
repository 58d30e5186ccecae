// layer norm on CUDA: a kernel where channels are whole vectors and not too many, otherwise PyTorch's

#include <ATen/ops/empty.h>
#include <ATen/ops/native_layer_norm.h>
#include <ATen/ops/native_layer_norm_backward.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "cuda/host.h"
#include "without_autocast.h"

namespace sola::cuda {
namespace layer_norm {

constexpr const char* kOp = "layer_norm";
constexpr int64_t kBytes = 16, kLanes = 32;

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

void check(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps) {
  check_layer_norm(kOp, x, weight, bias, eps);
  check_dtype(kOp, "x", x);
}

// whether a kernel takes tokens of this width, where a lane of a warp takes `vectors` of 16 bytes
bool has_kernel(const at::Tensor& x, int vectors) {
  const int64_t bytes = x.size(2) * int64_t(x.element_size());
  return bytes % kBytes == 0 && bytes <= vectors * kLanes * kBytes;
}

at::Tensor parameter_in_vectors(const at::Tensor& parameter) { return in_vectors(parameter.contiguous(), 0); }

at::Tensor forward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps) {
  check(x, weight, bias, eps);
  const c10::DeviceGuard guard(x.device());
  const auto as_they_are = without_autocast();
  if (x.numel() == 0) return at::empty(x.sizes(), x.options());
  if (!has_kernel(x, kNormVectors)) {
    // PyTorch's kernel wants one dtype for all
    const at::Tensor wide = x.to(weight.scalar_type());
    return std::get<0>(at::native_layer_norm(wide, {x.size(2)}, weight, bias, eps)).to(x.scalar_type());
  }
  auto out = at::empty(x.sizes(), x.options());
  const at::Tensor tokens = tokens_in_vectors(x), w = parameter_in_vectors(weight), b = parameter_in_vectors(bias);
  LayerNormParams p = layer_norm_params(tokens, w, eps);
  p.bias = b.data_ptr();
  p.out = rows_of(out);
  check_launch(kOp, launch_layer_norm(p, dtype_of(x), current_stream(x.device())));
  return out;
}

Gradients gradients_by_pytorch(const at::Tensor& grad_out, const at::Tensor& x, const at::Tensor& weight,
                               const at::Tensor& bias, double eps) {
  const at::Tensor tokens = x.to(weight.scalar_type());
  const auto [out, mean, inverse] = at::native_layer_norm(tokens, {x.size(2)}, weight, bias, eps);
  auto [grad_x, grad_weight, grad_bias] = at::native_layer_norm_backward(
      grad_out.to(weight.scalar_type()), tokens, {x.size(2)}, mean, inverse, weight, bias, {true, true, true});
  return {grad_x.to(x.scalar_type()), grad_weight, grad_bias};
}

Gradients backward(const at::Tensor& grad_out, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                   double eps) {
  check(x, weight, bias, eps);
  const c10::DeviceGuard guard(x.device());
  const auto as_they_are = without_autocast();
  if (x.numel() == 0) return {at::empty(x.sizes(), x.options()), at::zeros_like(weight), at::zeros_like(bias)};
  if (!has_kernel(x, kNormGradientVectors)) return gradients_by_pytorch(grad_out, x, weight, bias, eps);
  auto grad_x = at::empty(x.sizes(), x.options());
  const at::Tensor tokens = tokens_in_vectors(x), grads = tokens_in_vectors(grad_out);
  const at::Tensor w = parameter_in_vectors(weight);
  LayerNormParams p = layer_norm_params(tokens, w, eps);
  p.grad_out = rows_of(grads);
  p.grad_x = rows_of(grad_x);
  const int64_t ranges = (p.N + kNormRange - 1) / kNormRange;
  const auto sums = at::empty({ranges, 2 * p.C}, float_like(x)), total = at::empty({2, p.C}, float_like(x));
  p.sums = floats(sums);
  void* stream = current_stream(x.device());
  check_launch(kOp, launch_layer_norm_backward(p, dtype_of(x), stream));
  check_launch(kOp, launch_column_sums({{floats(sums)}, {floats(total)}, 1, ranges, 2 * p.C}, stream));
  const at::Tensor grads_of_both = total.to(weight.scalar_type());
  return {grad_x, grads_of_both[0], grads_of_both[1].clone()};
}

}  // namespace layer_norm

TORCH_LIBRARY_IMPL(SOLA_CUDA_LIBRARY, SOLA_CUDA_KEY, m) {
  m.impl("layer_norm", &layer_norm::forward);
  m.impl("layer_norm_backward", &layer_norm::backward);
}

}  // namespace sola::cuda
