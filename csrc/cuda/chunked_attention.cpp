// linear attention in chunks on CUDA: outputs, workspaces, order of kernels
//
// Chunks are one tile of tokens whatever the caller's `chunk`, which changes the cost and not the result. A block walks
// over the chunks of a stretch. Where heads alone are too few blocks, a sequence has several stretches: what each sums
// up by itself is gathered before and connected, so that all of them walk at once.

#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>

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

// shorter stretches would read their tokens twice for little
constexpr int64_t kLeastStretch = 4 * kTile;

// tokens per stretch, so that the outputs' walk has two blocks for every multiprocessor
int64_t plan_stretch(const AttentionSizes& s, bool half, const at::Device& device) {
  const int64_t part = walk_part(half, s.D), blocks = std::max<int64_t>(1, s.B * s.H * ((s.V + part - 1) / part));
  const int64_t stretches = std::max<int64_t>(1, 2 * size_of(device).multiprocessors / blocks);
  const int64_t tiles = (s.N + kTile - 1) / kTile;
  return std::max(kLeastStretch, (tiles + stretches - 1) / stretches * kTile);
}

// what enters every stretch from one side, and its derivative by log γ where that is asked for; undefined tensors
// where there is one stretch
struct States {
  at::Tensor sums, tangents;
};

using LaunchWalk = int (*)(const ChunkWalkParams&, Dtype, void*);

// what all kernels of one call have in common
struct Call {
  AttentionSizes s;
  FeatureMap map;
  bool causal, normalize;
  at::Tensor decay;  // contiguous, or undefined
  Dtype dtype;
  void* stream;
  at::TensorOptions sums;
  int64_t per_stretch;

  int64_t stretches() const { return (s.N + per_stretch - 1) / per_stretch; }

  WalkCall walk(Side side, bool diagonal) const {
    return {s.B, s.H, s.N, stretches(), per_stretch, floats(decay), side, diagonal};
  }

  // whether a result whose tokens see others mainly on `main` sees any on `side`
  bool sees(Side main, Side side) const { return !causal || side == main; }

  // Σ weight φ(x)ᵀ y and Σ coefficient φ(x), of what lies on that side of a stretch
  States enter(const View& x, const View& y, const at::Tensor& weight, const at::Tensor& coefficient, Side side,
               bool with_tangents = false) const {
    if (stretches() == 1) return {};
    const int64_t numbers = s.D * s.V + s.D;
    const auto gather = [&](bool distances) {
      const auto to = at::empty({s.B * s.H, stretches(), numbers}, sums);
      check_launch(kOp, launch_gather({x, y, s.B, s.H, s.N, s.D, s.V, stretches(), per_stretch, map, floats(weight),
                                       floats(coefficient), floats(decay), side, floats(to), distances},
                                      dtype, stream));
      return to;
    };
    States states{gather(false), with_tangents ? gather(true) : at::Tensor()};
    check_launch(
        kOp, launch_chunk_connect({walk(side, false), numbers, floats(states.sums), floats(states.tangents)}, stream));
    return states;
  }

  // One walk where tokens see one side; otherwise two, the first of which leaves its sums for the second.
  void run(ChunkWalkParams params, Side main, const States (&states)[2], LaunchWalk launch) const {
    at::Tensor partial, partial_normaliser;
    const auto start = [&](Side side, Walk kind) {
      params.call = walk(side, kind != Walk::first);
      params.walk = kind;
      params.states = floats(states[int(side)].sums);
      check_launch(kOp, launch(params, dtype, stream));
    };
    if (causal) return start(main, Walk::only);
    partial = at::empty({s.B, s.H, s.N, params.width}, sums);
    partial_normaliser = at::empty({s.B, s.H, params.normaliser ? s.N : 0}, sums);
    params.partial = floats(partial);
    params.partial_normaliser = floats(partial_normaliser);
    start(main == Side::left ? Side::right : Side::left, Walk::first);
    start(main, Walk::second);
  }
};

Call make_call(const AttentionSizes& s, const at::Tensor& q, const std::optional<at::Tensor>& decay, FeatureMap map,
               bool causal, bool normalize) {
  const Dtype dtype = dtype_of(q);
  return {s,
          map,
          causal,
          normalize,
          decay ? decay->contiguous() : at::Tensor(),
          dtype,
          current_stream(q.device()),
          float_like(q),
          plan_stretch(s, dtype == Dtype::bf16, q.device())};
}

// a walk's operands; what isn't said is missing
ChunkWalkParams operands(const Call& call, const View& a, const View& b, const View& y, const View& out, int64_t depth,
                         int64_t width) {
  ChunkWalkParams params{};
  params.map = call.map;
  params.a = a;
  params.b = b;
  params.y = y;
  params.out = out;
  params.depth = depth;
  params.width = width;
  return params;
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
  States states[2];
  for (const Side side : {Side::left, Side::right}) {
    if (call.sees(Side::left, side)) states[int(side)] = call.enter(view_of(k), view_of(v), {}, {}, side);
  }
  ChunkWalkParams params = operands(call, view_of(q), view_of(k), view_of(v), view_of(out), s.D, s.V);
  params.companion = normalize;
  params.normaliser = normalize ? floats(normaliser) : nullptr;
  params.eps = float(eps);
  call.run(params, Side::left, states, launch_chunk_values);
  return {out, normaliser};
}

// r = 1/normaliser and dd of every row; undefined without a normaliser
struct Denominators {
  at::Tensor inverse, grad;
};

Denominators differentiate(const Call& call, const at::Tensor& grad_out, const at::Tensor& out,
                           const at::Tensor& normaliser) {
  if (!call.normalize) return {};
  const auto& s = call.s;
  const at::Tensor saved = dense_last(out), sums = normaliser.contiguous();
  const Denominators to{at::empty({s.B, s.H, s.N}, call.sums), at::empty({s.B, s.H, s.N}, call.sums)};
  check_launch(kOp, launch_chunk_denominators({view_of(grad_out), view_of(saved), s.B, s.H, s.N, s.V, floats(sums),
                                               floats(to.inverse), floats(to.grad)},
                                              call.dtype, call.stream));
  return to;
}

void add_decays(const Call& call, const View& q, const View& k, const View& v, const View& grad_out,
                const Denominators& denominators, const States (&states)[2], const at::Tensor& grad_decay) {
  const auto& s = call.s;
  const int64_t per_side = call.stretches() * tangent_blocks(call.dtype == Dtype::bf16, s.D, s.V);
  const int64_t per_head = call.causal ? per_side : 2 * per_side;
  const auto shares = at::empty({s.B * s.H, per_head}, call.sums);
  for (const Side side : {Side::left, Side::right}) {
    if (!call.sees(Side::left, side)) continue;
    const States& entering = states[int(side)];
    check_launch(kOp,
                 launch_chunk_tangent({call.walk(side, false), call.map, q, k, v, grad_out, s.D, s.V,
                                       floats(denominators.inverse), floats(denominators.grad), floats(entering.sums),
                                       floats(entering.tangents), floats(shares) + int(side) * per_side, per_head},
                                      call.dtype, call.stream));
  }
  check_launch(kOp, launch_chunk_decay({s.B, s.H, per_head, floats(call.decay), floats(shares), floats(grad_decay)},
                                       call.stream));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& grad_out, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const std::optional<at::Tensor>& decay, const at::Tensor& out, const at::Tensor& normaliser,
    c10::string_view feature_map, bool causal, bool normalize, double /*eps*/, int64_t chunk, bool decay_grad) {
  const auto s = check(q, k, v, decay, chunk);
  decay_grad = decay_grad && decay;
  const FeatureMap map = parse_feature_map(kOp, feature_map);
  const c10::DeviceGuard guard(q.device());
  auto grad_q = at::empty(q.sizes(), q.options());
  auto grad_k = at::empty(k.sizes(), k.options());
  auto grad_v = at::empty(v.sizes(), v.options());
  auto grad_decay = at::zeros({decay_grad ? s.H : 0}, float_like(q));
  if (s.B * s.N * s.H == 0) return {grad_q, grad_k, grad_v, grad_decay};

  const Call call = make_call(s, q, decay, map, causal, normalize);
  const at::Tensor grad = dense_last(grad_out);
  const Denominators denominators = differentiate(call, grad, out, normaliser);
  const float *inverse = floats(denominators.inverse), *grad_denominator = floats(denominators.grad);
  // queries see keys on their left; gradients reach keys from queries on their right
  States keys[2], grads[2];
  for (const Side side : {Side::left, Side::right}) {
    if (call.sees(Side::left, side)) keys[int(side)] = call.enter(view_of(k), view_of(v), {}, {}, side, decay_grad);
    if (call.sees(Side::right, side))
      grads[int(side)] = call.enter(view_of(q), view_of(grad), denominators.inverse, denominators.grad, side);
  }
  ChunkWalkParams params = operands(call, view_of(grad), view_of(v), view_of(k), view_of(grad_q), s.V, s.D);
  params.x = view_of(q);
  params.companion = normalize;
  params.row_weight = inverse;
  params.row_coefficient = grad_denominator;
  call.run(params, Side::left, keys, launch_chunk_gradients);

  params = operands(call, view_of(v), view_of(grad), view_of(q), view_of(grad_k), s.V, s.D);
  params.x = view_of(k);
  params.companion = normalize;
  params.column_weight = inverse;
  params.column_coefficient = grad_denominator;
  call.run(params, Side::right, grads, launch_chunk_gradients);

  params = operands(call, view_of(k), view_of(q), view_of(grad), view_of(grad_v), s.D, s.V);
  params.column_weight = inverse;
  call.run(params, Side::right, grads, launch_chunk_values);
  if (decay_grad) add_decays(call, view_of(q), view_of(k), view_of(v), view_of(grad), denominators, keys, grad_decay);
  return {grad_q, grad_k, grad_v, grad_decay};
}

TORCH_LIBRARY_IMPL(SOLA_CUDA_LIBRARY, SOLA_CUDA_KEY, m) {
  m.impl("chunked_linear_attention", &forward);
  m.impl("chunked_linear_attention_backward", &backward);
}

}  // namespace chunked
}  // namespace sola::cuda
