// mixes of tokens with their shifted neighbours on the CPU: checks, outputs, ranges of tokens, threads

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "cpu/parallel.h"
#include "cpu/shares.h"
#include "sizes.h"

namespace sola {
namespace {

constexpr const char* kOp = "shift_mix";
// tokens of a task: their share of the ratios' gradient is far smaller than they are
constexpr int64_t kRange = 128;
// what a channel of a mix of a token costs, in scalar operations
constexpr double kForwardOps = 4, kBackwardOps = 12;

int64_t ranges_of(const ShiftMixParams& p) { return (p.H * p.W + kRange - 1) / kRange; }

// f(task, place, index) for every range of every image
template <class F>
void over_ranges(const ShiftMixParams& p, Dtype dtype, double ops, const F& f) {
  const int64_t ranges = ranges_of(p), tokens = p.H * p.W;
  const size_t scratch = kernels().shift_mix.scratch(p, {dtype, nullptr, nullptr});
  run_tasks(p.B * ranges, ops * double(kRange * p.C * p.mixes), dtype, nullptr, scratch,
            [&](int64_t index, const Task& task) {
              const int64_t begin = index % ranges * kRange;
              f(task, Place{index / ranges, 0, begin, std::min(begin + kRange, tokens)}, index);
            });
}

std::vector<at::Tensor> forward(const at::Tensor& x, const at::Tensor& ratios) {
  check_mix(kOp, x, ratios);
  std::vector<at::Tensor> mixed;
  for (int64_t i = 0; i < ratios.size(0); ++i) mixed.push_back(at::empty(x.sizes(), x.options()));
  if (x.numel() == 0) return mixed;
  const at::Tensor shares = ratios.contiguous();
  const ShiftMixParams p = mix_params(x, shares, mixed);
  over_ranges(p, dtype_of(x), kForwardOps,
              [&](const Task& task, Place place, int64_t) { kernels().shift_mix.forward(p, task, place); });
  return mixed;
}

std::tuple<at::Tensor, at::Tensor> backward(at::TensorList grads, const at::Tensor& x, const at::Tensor& ratios) {
  check_mix(kOp, x, ratios);
  check_mixed(kOp, grads, x, ratios);
  auto grad_x = at::empty(x.sizes(), x.options());
  if (x.numel() == 0) return {grad_x, at::zeros(ratios.sizes(), ratios.options())};
  std::vector<at::Tensor> dense;
  for (const at::Tensor& grad : grads) dense.push_back(dense_last(grad));
  const at::Tensor shares = ratios.contiguous();
  ShiftMixParams p = mix_params(x, shares, dense);
  p.grad_x = view_of(grad_x);
  const auto sums = at::empty({p.B * ranges_of(p), p.mixes * p.C}, ratios.options());
  p.grad_ratios = sums.data_ptr();
  over_ranges(p, dtype_of(x), kBackwardOps, [&](const Task& task, Place place, int64_t index) {
    kernels().shift_mix.backward(p, task, place, index);
  });
  return {grad_x, add_up(sums).view(ratios.sizes())};
}

}  // namespace

TORCH_LIBRARY_IMPL(sola, CPU, m) {
  m.impl("shift_mix", &forward);
  m.impl("shift_mix_backward", &backward);
}

}  // namespace sola
