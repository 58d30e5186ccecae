// channel mix on CUDA: a kernel forward, where there is one, otherwise and backward PyTorch's own products with what
// comes between in as few passes as can be; hidden units are computed again in the backward, as on the CPU

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <limits>

#include "cuda/host.h"
#include "without_autocast.h"

namespace sola::cuda {
namespace channel_mix {

constexpr const char* kOp = "channel_mix";

// whether the kernel takes a call; sola_profile/cost/workspaces.py has the rule of dtypes and widths too
bool has_kernel(const at::Tensor& x_k, int64_t hidden, const DeviceSize& device) {
  constexpr int64_t kNumbers = 16 / 2, kMostUnits = int64_t(1) << 30;
  const int64_t channels = x_k.size(2), blocks = x_k.size(0) * x_k.size(1) / mix_rows(channels);
  if (x_k.element_size() != 2 || channels > kWideMix || hidden > kMostUnits) return false;
  // a block goes through all hidden units: a few wide ones would let most of the device wait
  if (channels > kNarrowMix && 4 * blocks < device.multiprocessors) return false;
  return channels % kNumbers == 0 && hidden % kNumbers == 0;
}

// Blocks of warpgroups have 128 or 192 tokens: where fewer than a quarter of the multiprocessors have one, smaller
// blocks are ahead.
bool suits_hopper(const ChannelMixParams& p, const DeviceSize& device) {
  if (device.capability != 90 || !may_use(CudaFeature::wgmma)) return false;
  return 4 * p.N >= kHopperRows * device.multiprocessors;
}

at::Tensor weights_in_vectors(const at::Tensor& weights) { return in_vectors(weights.contiguous(), weights.size(1)); }

at::Tensor by_kernel(const at::Tensor& x_k, const at::Tensor& x_r, const at::Tensor& key, const at::Tensor& value,
                     const at::Tensor& receptance) {
  auto out = at::empty(x_k.sizes(), x_k.options());
  const at::Tensor mixed = tokens_in_vectors(x_k), gate = tokens_in_vectors(x_r);
  const at::Tensor K = weights_in_vectors(key), V = weights_in_vectors(value), R = weights_in_vectors(receptance);
  const ChannelMixParams p = channel_mix_params(mixed, gate, K, V, R, out);
  const auto launch = suits_hopper(p, size_of(x_k.device())) ? launch_hopper_channel_mix : launch_channel_mix;
  check_launch(kOp, launch(p, dtype_of(x_k), current_stream(x_k.device())));
  return out;
}

// tokens as a matrix; cuBLAS takes no rows that are further apart than an int says
at::Tensor flat(const at::Tensor& x) {
  const at::Tensor rows = x.reshape({x.size(0) * x.size(1), x.size(2)});
  return rows.size(0) > 1 && rows.stride(0) > std::numeric_limits<int>::max() ? rows.contiguous() : rows;
}

// tensors are dense; what a step has no use for is undefined
void run_step(MixStep step, const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, const at::Tensor& d) {
  const auto data = [](const at::Tensor& x) { return x.defined() ? x.data_ptr() : nullptr; };
  const MixStepParams p{data(a), data(b), data(c), data(d), a.numel()};
  check_launch(kOp, launch_mix_step(p, step, dtype_of(a), current_stream(a.device())));
}

at::Tensor forward(const at::Tensor& x_k, const at::Tensor& x_r, const at::Tensor& key, const at::Tensor& value,
                   const at::Tensor& receptance) {
  check_channel_mix(kOp, x_k, x_r, key, value, receptance);
  check_dtype(kOp, "x_k", x_k);
  const c10::DeviceGuard guard(x_k.device());
  const auto as_they_are = without_autocast();
  if (x_k.numel() == 0) return at::empty(x_k.sizes(), x_k.options());
  if (has_kernel(x_k, key.size(0), size_of(x_k.device()))) return by_kernel(x_k, x_r, key, value, receptance);
  const at::Tensor hidden = at::mm(flat(x_k), key.t());
  run_step(MixStep::square, hidden, {}, {}, {});
  const at::Tensor gate = at::mm(flat(x_r), receptance.t());
  run_step(MixStep::gate, gate, {}, at::mm(hidden, value.t()), {});
  return gate.view(x_k.sizes());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& grad_out, const at::Tensor& x_k, const at::Tensor& x_r, const at::Tensor& key,
    const at::Tensor& value, const at::Tensor& receptance, const at::Tensor& out) {
  check_channel_mix(kOp, x_k, x_r, key, value, receptance);
  check_dtype(kOp, "x_k", x_k);
  const c10::DeviceGuard guard(x_k.device());
  const auto as_they_are = without_autocast();
  const at::Tensor xk = flat(x_k), xr = flat(x_r);
  const at::Tensor grad_y = at::mm(xr, receptance.t()), grad_z = at::empty_like(grad_y);
  run_step(MixStep::through_gate, grad_y, grad_z, flat(grad_out).contiguous(), flat(out).contiguous());
  const at::Tensor squares = at::mm(xk, key.t()), grad_units = at::mm(grad_y, value);
  run_step(MixStep::through_squares, squares, grad_units, {}, {});
  return {at::mm(grad_units, key).view(x_k.sizes()), at::mm(grad_z, receptance).view(x_r.sizes()),
          at::mm(grad_units.t(), xk), at::mm(grad_y.t(), squares), at::mm(grad_z.t(), xr)};
}

}  // namespace channel_mix

TORCH_LIBRARY_IMPL(SOLA_CUDA_LIBRARY, SOLA_CUDA_KEY, m) {
  m.impl("channel_mix", &channel_mix::forward);
  m.impl("channel_mix_backward", &channel_mix::backward);
}

}  // namespace sola::cuda
