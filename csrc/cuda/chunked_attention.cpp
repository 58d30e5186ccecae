// linear attention in chunks on CUDA: outputs, workspaces, order of kernels
//
// Chunks are one tile of tokens whatever the caller's `chunk`, which changes the cost and not the result. Every chunk
// has blocks of its own: states of all chunks are summed up at once, connected number by number, and read at once.

#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "cuda/host.h"
#include "feature_map.h"

namespace sola::cuda {
namespace chunked {

constexpr const char* kOp = "linear_attention";

AttentionSizes check(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const std::optional<at::Tensor>& decay, int64_t chunk) {
  const auto s = check_attention(kOp, q, k, v);
  TORCH_CHECK_VALUE(s.M == s.N, kOp, ": k must have as many tokens as q with decay or causal, ", s.N, ", got ", s.M);
  TORCH_CHECK_VALUE(chunk >= 1 && chunk <= 256, kOp, ": chunk must be 1 to 256, got ", chunk);
  if (decay) check_vector(kOp, "decay", *decay, "H", q.size(2), q);
  check_dtype(kOp, "q", q);
  return s;
}

// what all kernels of one call have in common
struct Call {
  AttentionSizes s;
  FeatureMap map;
  bool causal, normalize;
  at::Tensor decay;  // contiguous, or undefined
  Dtype dtype;
  void* stream;
  at::TensorOptions sums;

  int64_t chunks() const { return (s.N + kTile - 1) / kTile; }

  ChunkedCall roles(bool rows_are_keys) const {
    return {s.B, s.H, s.N, chunks(), s.D, s.V, map, floats(decay), causal, rows_are_keys};
  }

  // what enters every chunk from one side
  at::Tensor enter(const View& x, const View& y, const at::Tensor& weight, const at::Tensor& coefficient,
                   Side side) const {
    const auto states = at::empty({s.B * s.H, chunks(), s.D * s.V + s.D}, sums);
    const GatherParams gather{x,
                              y,
                              s.B,
                              s.H,
                              s.N,
                              s.D,
                              s.V,
                              chunks(),
                              kTile,
                              map,
                              floats(weight),
                              floats(coefficient),
                              floats(decay),
                              side,
                              floats(states)};
    check_launch(kOp, launch_gather(gather, dtype, stream));
    const ChunkConnectParams connect{s.B, s.H, s.N, chunks(), s.D * s.V + s.D, floats(decay), side, floats(states)};
    check_launch(kOp, launch_chunk_connect(connect, stream));
    return states;
  }
};

Call make_call(const AttentionSizes& s, const at::Tensor& q, const std::optional<at::Tensor>& decay, FeatureMap map,
               bool causal, bool normalize) {
  return {s,
          map,
          causal,
          normalize,
          decay ? decay->contiguous() : at::Tensor(),
          dtype_of(q),
          current_stream(q.device()),
          float_like(q)};
}

std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                           const std::optional<at::Tensor>& decay, c10::string_view feature_map,
                                           bool causal, bool normalize, double eps, int64_t chunk) {
  const auto s = check(q, k, v, decay, chunk);
  const FeatureMap map = parse_feature_map(kOp, feature_map);
  const c10::DeviceGuard guard(q.device());
  auto out = at::empty({s.B, s.N, s.H, s.V}, q.options());
  auto normaliser = at::empty({s.B, s.H, normalize ? s.N : 0}, float_like(q));
  if (out.numel() == 0) return {out, normaliser};

  const Call call = make_call(s, q, decay, map, causal, normalize);
  at::Tensor left, right;
  if (call.chunks() > 1) {
    left = call.enter(view_of(k), view_of(v), {}, {}, Side::left);
    if (!causal) right = call.enter(view_of(k), view_of(v), {}, {}, Side::right);
  }
  const ChunkValuesParams values{call.roles(false),
                                 view_of(q),
                                 view_of(k),
                                 view_of(v),
                                 view_of(out),
                                 nullptr,
                                 {floats(left), floats(right)},
                                 normalize ? floats(normaliser) : nullptr,
                                 float(eps)};
  check_launch(kOp, launch_chunk_values(values, call.dtype, call.stream));
  return {out, normaliser};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& grad_out, const at::Tensor& q,
                                                                    const at::Tensor& k, const at::Tensor& v,
                                                                    const std::optional<at::Tensor>& decay,
                                                                    const at::Tensor& out, const at::Tensor& normaliser,
                                                                    c10::string_view feature_map, bool causal,
                                                                    bool normalize, double /*eps*/, int64_t chunk) {
  const auto s = check(q, k, v, decay, chunk);
  const FeatureMap map = parse_feature_map(kOp, feature_map);
  const c10::DeviceGuard guard(q.device());
  auto grad_q = at::empty(q.sizes(), q.options());
  auto grad_k = at::empty(k.sizes(), k.options());
  auto grad_v = at::empty(v.sizes(), v.options());
  auto grad_decay = at::zeros({decay ? s.H : 0}, float_like(q));
  if (s.B * s.N * s.H == 0) return {grad_q, grad_k, grad_v, grad_decay};

  const Call call = make_call(s, q, decay, map, causal, normalize);
  const at::Tensor grad = dense_last(grad_out), saved = dense_last(out), denominators = normaliser.contiguous();
  at::Tensor inverse, grad_denominator, shares;
  if (normalize) {
    inverse = at::empty({s.B, s.H, s.N}, call.sums);
    grad_denominator = at::empty({s.B, s.H, s.N}, call.sums);
    check_launch(kOp, launch_chunk_denominators({view_of(grad), view_of(saved), s.B, s.H, s.N, s.V,
                                                 floats(denominators), floats(inverse), floats(grad_denominator)},
                                                call.dtype, call.stream));
  }
  if (decay) shares = at::empty({s.B * s.H, call.chunks(), decay_shares(s.D)}, call.sums);

  at::Tensor keys[2], grads[2];
  for (const Side side : {Side::left, Side::right}) {
    if (call.chunks() == 1) break;
    const bool right = side == Side::right;
    // causal: keys are read from the right of them, gradients flow to their left
    if (!causal || !right) keys[right] = call.enter(view_of(k), view_of(v), {}, {}, side);
    if (!causal || right) grads[right] = call.enter(view_of(q), view_of(grad), inverse, grad_denominator, side);
  }
  const ChunkStates of_keys{floats(keys[0]), floats(keys[1])}, of_grads{floats(grads[0]), floats(grads[1])};
  const auto of_queries = ChunkGradientsParams{call.roles(false), view_of(grad), view_of(v),
                                               view_of(q),        view_of(k),    view_of(grad_q),
                                               floats(inverse),   nullptr,       floats(grad_denominator),
                                               nullptr,           normalize,     of_keys,
                                               floats(shares)};
  check_launch(kOp, launch_chunk_gradients(of_queries, call.dtype, call.stream));
  const auto of_k =
      ChunkGradientsParams{call.roles(true), view_of(v), view_of(grad),   view_of(k), view_of(q),
                           view_of(grad_k),  nullptr,    floats(inverse), nullptr,    floats(grad_denominator),
                           normalize,        of_grads,   floats(shares)};
  check_launch(kOp, launch_chunk_gradients(of_k, call.dtype, call.stream));
  const ChunkValuesParams of_v{call.roles(true), view_of(k), view_of(q), view_of(grad), view_of(grad_v),
                               floats(inverse),  of_grads,   nullptr,    0.0f};
  check_launch(kOp, launch_chunk_values(of_v, call.dtype, call.stream));
  if (decay) {
    check_launch(kOp,
                 launch_chunk_crossing({call.roles(false), of_keys, of_grads, normalize, floats(shares)}, call.stream));
    check_launch(kOp, launch_chunk_decay({s.B, s.H, call.chunks(), decay_shares(s.D), floats(call.decay),
                                          floats(shares), floats(grad_decay)},
                                         call.stream));
  }
  return {grad_q, grad_k, grad_v, grad_decay};
}

TORCH_LIBRARY_IMPL(SOLA_CUDA_LIBRARY, SOLA_CUDA_KEY, m) {
  m.impl("chunked_linear_attention", &forward);
  m.impl("chunked_linear_attention_backward", &backward);
}

}  // namespace chunked
}  // namespace sola::cuda
