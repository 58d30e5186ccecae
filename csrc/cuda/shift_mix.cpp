// mixes of tokens with their shifted neighbours on CUDA: outputs, workspaces, order of kernels

#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "cuda/host.h"

namespace sola::cuda {
namespace shift_mix {

constexpr const char* kOp = "shift_mix";

void check(const at::Tensor& x, const at::Tensor& ratios) {
  check_mix(kOp, x, ratios);
  check_dtype(kOp, "x", x);
}

// whether rows of channels, and each of their four groups, are whole vectors of 16 bytes
bool is_wide(const ShiftMixParams& p, int64_t item_size) {
  constexpr int64_t kBytes = 16;
  const auto fits = [&](const View& view) {
    return (reinterpret_cast<uintptr_t>(view.data) | (view.batch * item_size) | (view.token * item_size) |
            (view.head * item_size)) %
               kBytes ==
           0;
  };
  bool wide = p.C % 4 == 0 && p.C / 4 * item_size % kBytes == 0 && fits(p.x);
  wide = wide && reinterpret_cast<uintptr_t>(p.ratios) % kBytes == 0;
  for (int i = 0; i < p.mixes; ++i) wide = wide && fits(p.mixed[i]);
  return wide;
}

ShiftMixWork work_of(const at::Tensor& x, const at::Tensor& ratios, at::TensorList mixed) {
  ShiftMixWork work{};
  work.op = mix_params(x, ratios, mixed);
  work.ranges = (work.op.H * work.op.W + kMixRange - 1) / kMixRange;
  work.wide = is_wide(work.op, x.element_size());
  work.tokens = Divisor(work.op.H * work.op.W);
  work.columns = Divisor(work.op.W);
  work.group = Divisor(work.op.C / 4);
  return work;
}

std::vector<at::Tensor> forward(const at::Tensor& x, const at::Tensor& ratios) {
  check(x, ratios);
  const c10::DeviceGuard guard(x.device());
  std::vector<at::Tensor> mixed;
  for (int64_t i = 0; i < ratios.size(0); ++i) mixed.push_back(at::empty(x.sizes(), x.options()));
  if (x.numel() == 0) return mixed;
  const at::Tensor shares = ratios.contiguous();
  const ShiftMixWork work = work_of(x, shares, mixed);
  check_launch(kOp, launch_shift_mix(work, dtype_of(x), current_stream(x.device())));
  return mixed;
}

std::tuple<at::Tensor, at::Tensor> backward(at::TensorList grads, const at::Tensor& x, const at::Tensor& ratios) {
  check(x, ratios);
  check_mixed(kOp, grads, x, ratios);
  const c10::DeviceGuard guard(x.device());
  auto grad_x = at::empty(x.sizes(), x.options());
  if (x.numel() == 0) return {grad_x, at::zeros(ratios.sizes(), ratios.options())};
  std::vector<at::Tensor> dense;
  for (const at::Tensor& grad : grads) dense.push_back(dense_last(grad));
  const at::Tensor shares = ratios.contiguous();
  ShiftMixWork work = work_of(x, shares, dense);
  work.op.grad_x = view_of(grad_x);
  const int64_t rows = work.op.B * work.ranges;
  const auto sums = at::empty({rows, ratios.numel()}, ratios.options());
  auto grad_ratios = at::empty(ratios.sizes(), ratios.options());
  work.op.grad_ratios = floats(sums);
  void* stream = current_stream(x.device());
  check_launch(kOp, launch_shift_mix_backward(work, dtype_of(x), stream));
  check_launch(kOp, launch_column_sums({{floats(sums)}, {floats(grad_ratios)}, 1, rows, ratios.numel()}, stream));
  return {grad_x, grad_ratios};
}

TORCH_LIBRARY_IMPL(SOLA_CUDA_LIBRARY, SOLA_CUDA_KEY, m) {
  m.impl("shift_mix", &forward);
  m.impl("shift_mix_backward", &backward);
}

}  // namespace shift_mix
}  // namespace sola::cuda
