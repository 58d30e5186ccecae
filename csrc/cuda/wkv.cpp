// bidirectional WKV on CUDA: outputs, workspaces, order of kernels

#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "cuda/host.h"

namespace sola::cuda {
namespace wkv {

constexpr const char* kOp = "wkv";

void check(const at::Tensor& k, const at::Tensor& v, const at::Tensor& decay, const at::Tensor& bonus) {
  check_scan(kOp, k, v, decay, bonus);
  check_dtype(kOp, "k", k);
}

// the logarithm of the normaliser, and the output before it was rounded to half precision
int64_t saved_planes(const at::Tensor& k) { return k.element_size() == 2 ? 2 : 1; }

float* plane(const at::Tensor& saved, int64_t index) {
  return index < saved.size(0) ? floats(saved) + index * saved.stride(0) : nullptr;
}

// room for the states of stretches, where there are several, and what finds a block's
at::Tensor states_of(WkvWork& work, int64_t numbers, const at::TensorOptions& options) {
  at::Tensor states;
  work.channel_blocks = Divisor(wkv_channel_blocks(work.op.C));
  work.stretches = Divisor(work.op.stretches);
  if (work.op.stretches > 1) states = at::empty({work.op.B, work.op.stretches, 2, numbers, work.op.C}, options);
  work.states = floats(states);
  return states;
}

int64_t stretches_of(int64_t tokens, int64_t per_lane) {
  const int64_t stretch = per_lane * kWkvWarps;
  return (tokens + stretch - 1) / stretch;
}

std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& k, const at::Tensor& v, const at::Tensor& decay,
                                           const at::Tensor& bonus, bool save) {
  check(k, v, decay, bonus);
  const c10::DeviceGuard guard(k.device());
  const int64_t B = k.size(0), N = k.size(1), C = k.size(2);
  auto out = at::empty({B, N, C}, k.options());
  auto saved = at::empty({save ? saved_planes(k) : 0, B, N, C}, decay.options());
  if (out.numel() == 0) return {out, saved};

  const at::Tensor rates = decay.contiguous(), bonuses = bonus.contiguous();
  WkvWork work{};
  work.op = {B,
             N,
             C,
             view_of(k),
             view_of(v),
             view_of(out),
             rates.data_ptr(),
             bonuses.data_ptr(),
             plane(saved, 0),
             plane(saved, 1),
             {},
             {},
             {},
             nullptr,
             nullptr,
             stretches_of(N, kWkvForwardTokens)};
  const at::Tensor states = states_of(work, kWkvForwardNumbers, decay.options());
  check_launch(kOp, launch_wkv_forward(work, dtype_of(k), current_stream(k.device())));
  return {out, saved};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& grad_out, const at::Tensor& k,
                                                                    const at::Tensor& v, const at::Tensor& decay,
                                                                    const at::Tensor& bonus, const at::Tensor& out,
                                                                    const at::Tensor& kept) {
  check(k, v, decay, bonus);
  const c10::DeviceGuard guard(k.device());
  const int64_t B = k.size(0), N = k.size(1), C = k.size(2);
  auto grad_k = at::empty(k.sizes(), k.options());
  auto grad_v = at::empty(v.sizes(), v.options());
  if (k.numel() == 0) return {grad_k, grad_v, at::zeros({C}, decay.options()), at::zeros({C}, bonus.options())};
  TORCH_CHECK_VALUE(kept.dim() == 4 && kept.size(0) == saved_planes(k), kOp,
                    ": saved must come from a forward with save=True, got shape ", shape_text(kept.sizes()));

  const at::Tensor rates = decay.contiguous(), bonuses = bonus.contiguous(), saved = kept.contiguous();
  const at::Tensor grad = dense_last(grad_out), outputs = dense_last(out);
  WkvWork work{};
  work.op = {B,
             N,
             C,
             view_of(k),
             view_of(v),
             view_of(outputs),
             rates.data_ptr(),
             bonuses.data_ptr(),
             plane(saved, 0),
             plane(saved, 1),
             view_of(grad),
             view_of(grad_k),
             view_of(grad_v),
             nullptr,
             nullptr,
             stretches_of(N, kWkvBackwardTokens)};
  const at::Tensor states = states_of(work, kWkvBackwardNumbers, decay.options());
  const int64_t rows = B * work.op.stretches;
  const auto shares = at::empty({2, rows, C}, decay.options());
  auto grad_decay = at::empty({C}, decay.options()), grad_bonus = at::empty({C}, bonus.options());
  work.op.grad_decay = floats(shares);
  work.op.grad_bonus = floats(shares) + shares.stride(0);
  void* stream = current_stream(k.device());
  check_launch(kOp, launch_wkv_backward(work, dtype_of(k), stream));
  const ColumnSumsParams sums{
      {floats(shares), floats(shares) + shares.stride(0)}, {floats(grad_decay), floats(grad_bonus)}, 2, rows, C};
  check_launch(kOp, launch_column_sums(sums, stream));
  return {grad_k, grad_v, grad_decay, grad_bonus};
}

TORCH_LIBRARY_IMPL(SOLA_CUDA_LIBRARY, SOLA_CUDA_KEY, m) {
  m.impl("wkv", &forward);
  m.impl("wkv_backward", &backward);
}

}  // namespace wkv
}  // namespace sola::cuda
