// softmax attention on the CPU: checks, outputs, threads

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "cpu/parallel.h"
#include "sizes.h"

namespace sola {
namespace {

constexpr const char* kOp = "softmax_attention";
// queries that share one load of the keys; several tiles of 64, few enough to stay in the second cache
constexpr int64_t kQueryRows = 512;
constexpr int64_t kTileRows = 64;

// bfloat16 products pair up neighbours in the head dims, so these must be even
BrgemmBf16 brgemm_for(const AttentionSizes& s, Dtype dtype) {
  return s.D % 2 == 0 && s.V % 2 == 0 ? native_for(dtype) : nullptr;
}

std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale,
                                           bool causal) {
  const auto s = check_attention(kOp, q, k, v);
  auto out = at::empty({s.B, s.N, s.H, s.V}, q.options());
  auto logsumexp = at::empty({s.B, s.H, s.N}, q.options().dtype(accumulate_type(q)));
  if (out.numel() == 0) return {out, logsumexp};

  SoftmaxParams p{s,     view_of(q), view_of(k), view_of(v), view_of(out), logsumexp.data_ptr(),
                  scale, causal,     {},         {},         {},           {}};
  const Dtype dtype = dtype_of(q);
  const BrgemmBf16 brgemm = brgemm_for(s, dtype);
  const auto& kernel = kernels().softmax_forward;
  const int64_t tiles = (s.N + kTileRows - 1) / kTileRows;
  const int64_t fewest = (s.N + kQueryRows - 1) / kQueryRows;
  const int64_t shares = std::min(tiles, fewest * choose_shares(s.B * s.H * fewest, tiles));
  const int64_t rows = (tiles + shares - 1) / shares * kTileRows;
  const int64_t chunks = (s.N + rows - 1) / rows;
  const size_t scratch = kernel.scratch(p, {dtype, brgemm, nullptr}, rows);
  const double ops = 2.0 * double(std::min(rows, s.N)) * double(s.M) * double(s.D + s.V);
  run_tasks(s.B * s.H * chunks, ops, dtype, brgemm, scratch, [&](int64_t index, const Task& task) {
    const int64_t outer = index / chunks, begin = index % chunks * rows;
    kernel.run(p, task, {outer / s.H, outer % s.H, begin, std::min(begin + rows, s.N)});
  });
  return {out, logsumexp};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& grad_out, const at::Tensor& q,
                                                        const at::Tensor& k, const at::Tensor& v, const at::Tensor& out,
                                                        const at::Tensor& logsumexp, double scale, bool causal) {
  const auto s = check_attention(kOp, q, k, v);
  auto grad_q = at::empty(q.sizes(), q.options());
  auto grad_k = at::empty(k.sizes(), k.options());
  auto grad_v = at::empty(v.sizes(), v.options());
  // no keys: their gradients have no numbers, and nothing comes back to the queries
  if (s.B * s.H == 0 || s.M == 0) return {grad_q.zero_(), grad_k, grad_v};

  const at::Tensor grad = dense_last(grad_out), lse = logsumexp.contiguous(), saved = dense_last(out);
  SoftmaxParams p{s,     view_of(q), view_of(k),    view_of(v),      view_of(saved),  lse.data_ptr(),
                  scale, causal,     view_of(grad), view_of(grad_q), view_of(grad_k), view_of(grad_v)};
  const Dtype dtype = dtype_of(q);
  const BrgemmBf16 brgemm = brgemm_for(s, dtype);
  const auto& kernel = kernels().softmax_backward;
  const int64_t heads = s.B * s.H;
  const int64_t shares = choose_shares(heads, std::max<int64_t>(1, s.N / kTileRows));
  const int64_t sums = kernel.sums(p, {dtype, brgemm, nullptr});
  at::Tensor buffer;
  if (shares > 1) buffer = at::empty({heads, shares, sums}, q.options().dtype(accumulate_type(q)));
  const auto split_of = [&](int64_t head, int64_t index) -> Split {
    if (shares == 1) return {};
    auto* base = static_cast<std::byte*>(buffer.data_ptr());
    return {index, shares, base + (head * shares + index) * sums * int64_t(buffer.element_size())};
  };

  const size_t scratch = kernel.scratch(p, {dtype, brgemm, nullptr}, split_of(0, 0));
  const double pairs = double(s.N) * double(s.M) / double(shares);
  run_tasks(heads * shares, 2.0 * pairs * double(3 * s.D + 2 * s.V), dtype, brgemm, scratch,
            [&](int64_t index, const Task& task) {
              const int64_t head = index / shares;
              kernel.run(p, task, {head / s.H, head % s.H, 0, s.N}, split_of(head, index % shares));
            });
  if (shares > 1) {
    const int64_t block = (s.M + shares - 1) / shares, blocks = (s.M + block - 1) / block;
    run_tasks(heads * blocks, double(block * shares * (s.D + s.V)), dtype, nullptr, scratch,
              [&](int64_t index, const Task& task) {
                const int64_t head = index / blocks, begin = index % blocks * block;
                kernel.finish(p, task, {head / s.H, head % s.H, begin, std::min(begin + block, s.M)},
                              split_of(head, 0));
              });
  }
  return {grad_q, grad_k, grad_v};
}

}  // namespace

TORCH_LIBRARY_IMPL(sola, CPU, m) {
  m.impl("softmax_attention", &forward);
  m.impl("softmax_attention_backward", &backward);
}

}  // namespace sola
