// softmax attention on CUDA: route, outputs, workspaces, order of kernels

#include <torch/library.h>

#include <algorithm>

#include "cuda/host.h"
#include "cuda/softmax_sdpa.h"

namespace sola::cuda {
namespace softmax {

constexpr const char* kOp = "softmax_attention";

AttentionSizes check(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  const auto s = check_attention(kOp, q, k, v);
  check_dtype(kOp, "q", q);
  // places of tokens are counted in 32 bits; offsets are not
  constexpr int64_t kMostTokens = int64_t(1) << 30;
  TORCH_CHECK_VALUE(s.N <= kMostTokens, kOp, ": q must have at most ", kMostTokens, " tokens on cuda, got ", s.N);
  TORCH_CHECK_VALUE(s.M <= kMostTokens, kOp, ": k must have at most ", kMostTokens, " tokens on cuda, got ", s.M);
  return s;
}

// Twice the queries to a block halve what it reads of keys and values, as long as they exist and fill the device.
int rows_of_block(const AttentionSizes& s, const at::Device& device) {
  const int64_t tiles = (s.N + kTile - 1) / kTile, pairs = (tiles + 1) / 2;
  const bool wasteful = tiles % 2 == 1 && tiles < 16;
  return !wasteful && s.B * s.H * pairs >= 2 * size_of(device).multiprocessors ? 2 * kTile : kTile;
}

// whether rows can be copied 16 bytes at a time, as tensor cores of warpgroups want them
bool in_vectors(const View& view, int64_t columns) {
  constexpr int64_t kNumbers = 16 / 2;
  return reinterpret_cast<uintptr_t>(view.data) % 16 == 0 &&
         (columns | view.batch | view.token | view.head) % kNumbers == 0;
}

// Warpgroups have 128 or 192 rows to a block. Half as many such blocks as multiprocessors are still ahead of all the
// smaller ones, which need two to four times as long for a row.
bool suits_hopper(const SoftmaxParams& p, Dtype dtype, int64_t rows, const DeviceSize& device) {
  const AttentionSizes& s = p.size;
  if (device.capability != 90 || !may_use(CudaFeature::wgmma)) return false;
  if ((dtype != Dtype::bf16 && dtype != Dtype::f16) || s.M == 0) return false;
  if (std::max(s.D, s.V) > kWideSoftmax || 2 * s.B * s.H * rows < kHopperRows * device.multiprocessors) return false;
  return in_vectors(p.q, s.D) && in_vectors(p.k, s.D) && in_vectors(p.v, s.V) && in_vectors(p.grad_out, s.V);
}

// by the kernels of this folder
void own_forward(const SoftmaxParams& p, const at::Device& device, Dtype dtype) {
  void* stream = current_stream(device);
  check_launch(kOp, suits_hopper(p, dtype, p.size.N, size_of(device))
                        ? launch_hopper_softmax_forward(p, dtype, stream)
                        : launch_softmax_forward(p, rows_of_block(p.size, device), dtype, stream));
}

std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale,
                                           bool causal) {
  const auto s = check(q, k, v);
  const c10::DeviceGuard guard(q.device());
  const SoftmaxCall call = softmax_call(q, k, v, s, scale, causal);
  const SoftmaxBackend backend = choose_softmax(call);
  if (backend != SoftmaxBackend::own) return sdpa_forward(backend, call, q, k, v);

  auto out = at::empty({s.B, s.N, s.H, s.V}, q.options());
  auto logsumexp = at::empty({s.B, s.H, s.N}, float_like(q));
  if (out.numel() == 0) return {out, logsumexp};

  const SoftmaxParams p{s,     view_of(q), view_of(k), view_of(v), view_of(out), logsumexp.data_ptr(),
                        scale, causal,     {},         {},         {},           {}};
  own_forward(p, q.device(), dtype_of(q));
  return {out, logsumexp};
}

// Whoever computed the forward: out and logsumexp are all it needs, and PyTorch's own backward passes add gradients of
// queries up in the order in which blocks arrive.
std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& grad_out, const at::Tensor& q,
                                                        const at::Tensor& k, const at::Tensor& v, const at::Tensor& out,
                                                        const at::Tensor& logsumexp, double scale, bool causal) {
  const auto s = check(q, k, v);
  const c10::DeviceGuard guard(q.device());
  auto grad_q = at::empty(q.sizes(), q.options());
  auto grad_k = at::empty(k.sizes(), k.options());
  auto grad_v = at::empty(v.sizes(), v.options());
  if (s.B * s.H == 0 || (s.N == 0 && s.M == 0)) return {grad_q, grad_k, grad_v};

  const at::Tensor grad = dense_last(grad_out), lse = logsumexp.contiguous(), saved = dense_last(out);
  const at::Tensor kept = at::empty({s.B, s.H, s.N, 2}, float_like(q));
  const SoftmaxBackwardParams p{{s, view_of(q), view_of(k), view_of(v), view_of(saved), lse.data_ptr(), scale, causal,
                                 view_of(grad), view_of(grad_q), view_of(grad_k), view_of(grad_v)},
                                floats(kept)};
  const Dtype dtype = dtype_of(q);
  void* stream = current_stream(q.device());
  check_launch(kOp, launch_softmax_save(p, dtype, stream));
  check_launch(kOp, suits_hopper(p.op, dtype, std::min(s.N, s.M), size_of(q.device()))
                        ? launch_hopper_softmax_backward(p, dtype, stream)
                        : launch_softmax_backward(p, dtype, stream));
  return {grad_q, grad_k, grad_v};
}

TORCH_LIBRARY_IMPL(SOLA_CUDA_LIBRARY, SOLA_CUDA_KEY, m) {
  m.impl("softmax_attention", &forward);
  m.impl("softmax_attention_backward", &backward);
}

}  // namespace softmax
}  // namespace sola::cuda
