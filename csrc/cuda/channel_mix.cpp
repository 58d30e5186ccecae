// channel mix on CUDA: PyTorch's own products, for graphs that were recorded with the operator; hidden units are
// computed again in the backward, as on the CPU

#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/rsub.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "cuda/host.h"

namespace sola::cuda {
namespace channel_mix {

constexpr const char* kOp = "channel_mix";

at::Tensor forward(const at::Tensor& x_k, const at::Tensor& x_r, const at::Tensor& key, const at::Tensor& value,
                   const at::Tensor& receptance) {
  check_channel_mix(kOp, x_k, x_r, key, value, receptance);
  const c10::DeviceGuard guard(x_k.device());
  const at::Tensor hidden = at::linear(x_k, key).relu_().square_();
  return at::linear(x_r, receptance).sigmoid_().mul_(at::linear(hidden, value));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& grad_out, const at::Tensor& x_k, const at::Tensor& x_r, const at::Tensor& key,
    const at::Tensor& value, const at::Tensor& receptance, const at::Tensor& out) {
  check_channel_mix(kOp, x_k, x_r, key, value, receptance);
  const c10::DeviceGuard guard(x_k.device());
  const auto rows = [](const at::Tensor& x) { return x.reshape({x.size(0) * x.size(1), x.size(2)}); };
  const at::Tensor xk = rows(x_k), xr = rows(x_r), grad = rows(grad_out);
  const at::Tensor share = at::linear(xr, receptance).sigmoid_();
  const at::Tensor grad_y = at::mul(grad, share);
  const at::Tensor grad_z = at::mul(grad, rows(out)).mul_(at::rsub(share, 1));
  const at::Tensor positive = at::linear(xk, key).relu_();
  const at::Tensor grad_hidden = at::mm(grad_y, value).mul_(positive).mul_(2);
  return {at::mm(grad_hidden, key).view(x_k.sizes()), at::mm(grad_z, receptance).view(x_r.sizes()),
          at::mm(grad_hidden.t(), xk), at::mm(grad_y.t(), positive.square()), at::mm(grad_z.t(), xr)};
}

}  // namespace channel_mix

TORCH_LIBRARY_IMPL(SOLA_CUDA_LIBRARY, SOLA_CUDA_KEY, m) {
  m.impl("channel_mix", &channel_mix::forward);
  m.impl("channel_mix_backward", &channel_mix::backward);
}

}  // namespace sola::cuda
