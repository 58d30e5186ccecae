// linear attention with one global state on CUDA: outputs, workspaces, order of kernels
//
// Keys and values are summed up in ranges of tokens, so that few heads still fill the device; ranges are added in their
// order, so two runs give the same bits. Then queries read the state. Backward: the same the other way round.

#include <torch/library.h>

#include "cuda/host.h"
#include "feature_map.h"

namespace sola::cuda {
namespace linear {

constexpr const char* kOp = "linear_attention";

struct Ranges {
  int64_t count, tokens;
};

// as many ranges of whole tiles as fill the device, none shorter than it takes to pay for writing a state
Ranges cut(int64_t tokens, int64_t blocks_per_range) {
  constexpr int64_t kFewestTiles = 4;
  const int64_t tiles = std::max<int64_t>(1, (tokens + kTile - 1) / kTile);
  const int64_t wanted = (kEnoughBlocks + blocks_per_range - 1) / blocks_per_range;
  const int64_t most = std::max<int64_t>(1, tiles / kFewestTiles);
  const int64_t length = (tiles + std::min(wanted, most) - 1) / std::min(wanted, most);
  return {(tiles + length - 1) / length, length * kTile};
}

// (S, z) of all heads
struct State {
  at::Tensor state, companion;
};

void sum_up(GatherParams p, const State& to, Dtype dtype, void* stream) {
  const int64_t heads = p.batches * p.heads;
  const Ranges ranges = cut(p.tokens, heads * ((p.D + 127) / 128) * ((p.V + 127) / 128));
  p.ranges = ranges.count;
  p.per_range = ranges.tokens;
  const at::Tensor sums = at::empty({heads * ranges.count, p.D * p.V + p.D}, to.state.options());
  p.sums = floats(sums);
  check_launch(kOp, launch_gather(p, dtype, stream));
  check_launch(kOp,
               launch_reduce({heads, ranges.count, p.D, p.V, p.sums, floats(to.state), floats(to.companion)}, stream));
}

State empty_state(const AttentionSizes& s, const at::TensorOptions& options) {
  return {at::empty({s.B, s.H, s.D, s.V}, options), at::empty({s.B, s.H, s.D}, options)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                       c10::string_view feature_map, bool normalize, double eps) {
  const auto s = check_attention(kOp, q, k, v);
  check_dtype(kOp, "q", q);
  const FeatureMap map = parse_feature_map(kOp, feature_map);
  const c10::DeviceGuard guard(q.device());
  auto out = at::empty({s.B, s.N, s.H, s.V}, q.options());
  const State sum = empty_state(s, float_like(q));
  if (s.B * s.H == 0) return {out, sum.state, sum.companion};

  const Dtype dtype = dtype_of(q);
  void* stream = current_stream(q.device());
  sum_up({view_of(k), view_of(v), s.B, s.H, s.M, s.D, s.V, 0, 0, map, nullptr, nullptr, nullptr, Side::left, nullptr},
         sum, dtype, stream);
  const ReadParams read{view_of(q),
                        {},
                        view_of(out),
                        s.B,
                        s.H,
                        s.N,
                        s.D,
                        s.V,
                        map,
                        floats(sum.state),
                        normalize ? floats(sum.companion) : nullptr,
                        float(eps),
                        nullptr,
                        nullptr};
  check_launch(kOp, launch_read(read, Read::values, dtype, stream));
  return {out, sum.state, sum.companion};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& grad_out, const at::Tensor& q,
                                                        const at::Tensor& k, const at::Tensor& v,
                                                        const at::Tensor& state, const at::Tensor& key_sum,
                                                        c10::string_view feature_map, bool normalize, double eps) {
  const auto s = check_attention(kOp, q, k, v);
  check_dtype(kOp, "q", q);
  const FeatureMap map = parse_feature_map(kOp, feature_map);
  const c10::DeviceGuard guard(q.device());
  auto grad_q = at::empty(q.sizes(), q.options());
  auto grad_k = at::empty(k.sizes(), k.options());
  auto grad_v = at::empty(v.sizes(), v.options());
  if (s.B * s.H == 0) return {grad_q, grad_k, grad_v};

  const Dtype dtype = dtype_of(q);
  void* stream = current_stream(q.device());
  const at::Tensor grad = dense_last(grad_out), saved = state.contiguous(), sum = key_sum.contiguous();
  at::Tensor inverse, grad_denominator;
  if (normalize) {
    inverse = at::empty({s.B, s.H, s.N}, float_like(q));
    grad_denominator = at::empty({s.B, s.H, s.N}, float_like(q));
  }
  ReadParams read{view_of(grad),
                  view_of(q),
                  view_of(grad_q),
                  s.B,
                  s.H,
                  s.N,
                  s.D,
                  s.V,
                  map,
                  floats(saved),
                  normalize ? floats(sum) : nullptr,
                  float(eps),
                  floats(inverse),
                  floats(grad_denominator)};
  check_launch(kOp, launch_read(read, Read::gradients, dtype, stream));

  const State grads = empty_state(s, float_like(q));
  sum_up({view_of(q), view_of(grad), s.B, s.H, s.N, s.D, s.V, 0, 0, map, floats(inverse), floats(grad_denominator),
          nullptr, Side::left, nullptr},
         grads, dtype, stream);
  read = {view_of(v),
          view_of(k),
          view_of(grad_k),
          s.B,
          s.H,
          s.M,
          s.D,
          s.V,
          map,
          floats(grads.state),
          normalize ? floats(grads.companion) : nullptr,
          0.0f,
          nullptr,
          nullptr};
  check_launch(kOp, launch_read(read, Read::gradients, dtype, stream));
  read = {view_of(k), {},  view_of(grad_v),     s.B,     s.H,  s.M,     s.D,
          s.V,        map, floats(grads.state), nullptr, 0.0f, nullptr, nullptr};
  check_launch(kOp, launch_read(read, Read::values, dtype, stream));
  return {grad_q, grad_k, grad_v};
}

TORCH_LIBRARY_IMPL(SOLA_CUDA_LIBRARY, SOLA_CUDA_KEY, m) {
  m.impl("linear_attention", &forward);
  m.impl("linear_attention_backward", &backward);
}

}  // namespace linear
}  // namespace sola::cuda
