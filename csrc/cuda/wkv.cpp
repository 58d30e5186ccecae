// bidirectional WKV on CUDA: outputs, workspaces, slices, order of kernels

#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>

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

// Both kernels of a call read the same tensors. Slices of batches and channels, one after the other, are so small that
// the second finds them in the L2 cache, and large enough to fill the device.
struct Slices {
  int64_t batches, channels;

  // `bytes`: of a token and channel, read twice
  Slices(const WkvParams& p, int64_t bytes, const at::Device& device) : batches(p.B), channels(p.C) {
    const DeviceSize size = size_of(device);
    const int64_t room = size.cache_bytes / 2, enough = 2 * size.multiprocessors, per_channel = p.N * bytes;
    if (p.stretches == 1 || p.B * p.C * per_channel <= room) return;
    batches = std::clamp<int64_t>(room / (p.C * per_channel), 1, p.B);
    if (p.C * per_channel > room)
      channels = std::min(p.C, std::max<int64_t>(1, room / per_channel / kWkvChannels) * kWkvChannels);
    while (channels < p.C && blocks(p) < enough) channels = std::min(p.C, channels + kWkvChannels);
    while (batches < p.B && blocks(p) < enough) ++batches;
  }

 private:
  int64_t blocks(const WkvParams& p) const { return batches * p.stretches * wkv_channel_blocks(channels); }
};

// a call cut to batches [batch, …) and channels [channel, …)
class Slice {
 public:
  Slice(const WkvWork& whole, const Slices& slices, int64_t batch, int64_t channel, int64_t element_size)
      : work(whole), batch_(batch), channel_(channel), element_size_(element_size) {
    WkvParams& p = work.op;
    p.B = std::min(slices.batches, p.B - batch);
    p.C = std::min(slices.channels, p.C - channel);
    for (View* view : {&p.k, &p.v, &p.out, &p.grad_out, &p.grad_k, &p.grad_v}) move(*view);
    p.decay = static_cast<const float*>(p.decay) + channel;
    p.bonus = static_cast<const float*>(p.bonus) + channel;
    p.log_normaliser = in_plane(p.log_normaliser);
    p.exact_out = in_plane(p.exact_out);
  }

  WkvWork work;

 private:
  int64_t batch_, channel_, element_size_;

  void move(View& view) const {
    if (view.data) view.data = static_cast<std::byte*>(view.data) + (batch_ * view.batch + channel_) * element_size_;
  }
  void* in_plane(void* plane) const {
    return plane ? static_cast<float*>(plane) + batch_ * work.op.N * work.row + channel_ : nullptr;
  }
};

// states of stretches, of one slice at a time
at::Tensor states_of(WkvWork& work, const Slices& slices, int64_t numbers, const at::TensorOptions& options) {
  at::Tensor states;
  if (work.op.stretches > 1)
    states = at::empty({slices.batches, work.op.stretches, 2, numbers, slices.channels}, options);
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
  work.row = C;
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
  const Slices slices(work.op, 2 * k.element_size(), k.device());
  const at::Tensor states = states_of(work, slices, kWkvForwardNumbers, decay.options());
  void* stream = current_stream(k.device());
  for (int64_t channel = 0; channel < C; channel += slices.channels)
    for (int64_t batch = 0; batch < B; batch += slices.batches) {
      const Slice slice(work, slices, batch, channel, k.element_size());
      check_launch(kOp, launch_wkv_forward(slice.work, dtype_of(k), stream));
    }
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
  work.row = C;
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
  // k, v and dO, the logarithm, and the output in float32
  const Slices slices(work.op, 3 * k.element_size() + 8, k.device());
  const at::Tensor states = states_of(work, slices, kWkvBackwardNumbers, decay.options());
  const int64_t rows = B * work.op.stretches;
  const auto shares = at::empty({2, rows * slices.channels}, decay.options());
  auto grad_decay = at::empty({C}, decay.options()), grad_bonus = at::empty({C}, bonus.options());
  void* stream = current_stream(k.device());
  for (int64_t channel = 0; channel < C; channel += slices.channels) {
    const int64_t channels = std::min(slices.channels, C - channel);
    for (int64_t batch = 0; batch < B; batch += slices.batches) {
      Slice slice(work, slices, batch, channel, k.element_size());
      slice.work.op.grad_decay = floats(shares) + batch * work.op.stretches * channels;
      slice.work.op.grad_bonus = floats(shares) + shares.stride(0) + batch * work.op.stretches * channels;
      check_launch(kOp, launch_wkv_backward(slice.work, dtype_of(k), stream));
    }
    const ColumnSumsParams sums{{floats(shares), floats(shares) + shares.stride(0)},
                                {floats(grad_decay) + channel, floats(grad_bonus) + channel},
                                rows,
                                channels};
    check_launch(kOp, launch_column_sums(sums, stream));
  }
  return {grad_k, grad_v, grad_decay, grad_bonus};
}

TORCH_LIBRARY_IMPL(SOLA_CUDA_LIBRARY, SOLA_CUDA_KEY, m) {
  m.impl("wkv", &forward);
  m.impl("wkv_backward", &backward);
}

}  // namespace wkv
}  // namespace sola::cuda
