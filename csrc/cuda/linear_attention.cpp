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

// Ranges of whole tiles for kernels with `resident` blocks per multiprocessor, none shorter than `fewest` tiles. What
// doesn't fill the last round of blocks leaves some of the device idle: the longest ranges with which five sixths of it
// are always at work, or else those that come nearest.
Ranges cut(int64_t tokens, int64_t blocks_per_range, int resident, int64_t fewest, const at::Device& device) {
  const int64_t tiles = std::max<int64_t>(1, (tokens + kTile - 1) / kTile);
  const int64_t slots = size_of(device).multiprocessors * resident;
  const int64_t most = std::max<int64_t>(1, tiles / fewest);
  const int64_t start = std::clamp<int64_t>(slots / blocks_per_range, 1, most);
  Ranges best{};
  double best_share = 0.0;
  for (int64_t wanted = start; wanted <= std::min(most, 8 * start) && best_share < 5.0 / 6.0; ++wanted) {
    const int64_t length = (tiles + wanted - 1) / wanted, count = (tiles + length - 1) / length;
    const int64_t rounds = (count * blocks_per_range + slots - 1) / slots;
    const double share = double(tiles * blocks_per_range) / double(rounds * length * slots);
    if (share > best_share) {
      best = {count, length * kTile};
      best_share = share;
    }
  }
  return best;
}

// ranges that write a state each are long enough to pay for it
constexpr int64_t kFewestTiles = 2;

// Blocks of a cluster that does a call by one kernel, or 0 where several do it better: clusters have no more than 8
// blocks for a head, which must fill the device or have little to do.
int64_t cluster_blocks(const AttentionSizes& s, Dtype dtype, bool gradients, const at::Device& device) {
  constexpr int64_t kFewTiles = 8;
  const DeviceSize size = size_of(device);
  const int64_t width = std::max(s.D, s.V), heads = s.B * s.H;
  if (size.capability < 90 || width > kClusterWidth || !may_use(CudaFeature::clusters)) return 0;
  const int64_t tiles = std::max<int64_t>(1, (std::max(s.N, s.M) + kTile - 1) / kTile);
  const int64_t slots = size.multiprocessors * resident_clusters(dtype, width, gradients);
  int64_t blocks = 1;
  while (blocks < kMostClusterBlocks && heads * blocks < slots && 2 * blocks <= tiles) blocks *= 2;
  const int64_t rounds = (heads * blocks + slots - 1) / slots;
  const bool full = 6 * heads * blocks >= 5 * rounds * slots;
  return full || (tiles + blocks - 1) / blocks <= kFewTiles ? blocks : 0;
}

Ranges ranges_of_cluster(int64_t tokens, int64_t blocks) {
  const int64_t tiles = (tokens + kTile - 1) / kTile;
  return {blocks, std::max<int64_t>(1, (tiles + blocks - 1) / blocks) * kTile};
}

// (S, z) of all heads
struct State {
  at::Tensor state, companion;
};

// room for the sums of ranges
at::Tensor empty_sums(const State& to, int64_t ranges) {
  const at::Tensor& state = to.state;
  return at::empty({state.size(0), state.size(1), ranges, state.size(2) * state.size(3) + state.size(2)},
                   state.options());
}

void add_ranges(const at::Tensor& sums, const State& to, void* stream) {
  const ReduceParams p{
      sums.size(0) * sums.size(1), sums.size(2), to.state.size(2), to.state.size(3), floats(sums), floats(to.state),
      floats(to.companion)};
  check_launch(kOp, launch_reduce(p, stream));
}

void sum_up(GatherParams p, const State& to, Dtype dtype, void* stream) {
  const int64_t blocks = p.batches * p.heads * ((p.D + 127) / 128) * ((p.V + 127) / 128);
  const Ranges ranges =
      cut(p.tokens, blocks, resident_gathers(dtype, std::max(p.D, p.V)), kFewestTiles, to.state.device());
  p.ranges = ranges.count;
  p.per_range = ranges.tokens;
  const at::Tensor sums = empty_sums(to, ranges.count);
  p.sums = floats(sums);
  check_launch(kOp, launch_gather(p, dtype, stream));
  add_ranges(sums, to, stream);
}

Ranges cut_reads(const AttentionSizes& s, int64_t tokens, Dtype dtype, bool gradients, int64_t fewest,
                 const at::Device& device) {
  return cut(tokens, s.B * s.H, resident_reads(dtype, std::max(s.D, s.V), gradients), fewest, device);
}

// what all reads of a call share
ReadParams read_of(const AttentionSizes& s, int64_t tokens, const Ranges& ranges, FeatureMap map, const State& from,
                   bool normalize) {
  ReadParams p{};
  p.batches = s.B;
  p.heads = s.H;
  p.tokens = tokens;
  p.D = s.D;
  p.V = s.V;
  p.ranges = ranges.count;
  p.per_range = ranges.tokens;
  p.map = map;
  p.state = floats(from.state);
  p.companion = normalize ? floats(from.companion) : nullptr;
  return p;
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
  const int64_t blocks = cluster_blocks(s, dtype, false, q.device());
  GatherParams gather{view_of(k), view_of(v), s.B,     s.H,     s.M,     s.D,        s.V,    0,
                      0,          map,        nullptr, nullptr, nullptr, Side::left, nullptr};
  const Ranges ranges = blocks ? ranges_of_cluster(s.N, blocks) : cut_reads(s, s.N, dtype, false, 1, q.device());
  ReadParams read = read_of(s, s.N, ranges, map, sum, normalize);
  read.eps = float(eps);
  read.x = view_of(q);
  read.out = view_of(out);
  if (blocks) {
    const Ranges keys = ranges_of_cluster(s.M, blocks);
    gather.ranges = keys.count;
    gather.per_range = keys.tokens;
    const ClusterParams p{gather, read, floats(sum.state), floats(sum.companion)};
    check_launch(kOp, launch_cluster_forward(p, dtype, stream));
  } else {
    sum_up(gather, sum, dtype, stream);
    check_launch(kOp, launch_read(read, Read::values, dtype, stream));
  }
  return {out, sum.state, sum.companion};
}

// dq, and (dS, dz)
State query_gradients(const AttentionSizes& s, ReadParams read, const at::Tensor& q, void* stream) {
  const bool together = sums_beside_gradients(s.D, s.V);
  const Dtype dtype = dtype_of(q);
  const State grads = empty_state(s, float_like(q));
  at::Tensor sums, inverse, grad_denominator;
  if (together) {
    sums = empty_sums(grads, read.ranges);
    read.sums = floats(sums);
  } else if (read.companion) {
    inverse = at::empty({s.B, s.H, s.N}, float_like(q));
    grad_denominator = at::empty({s.B, s.H, s.N}, float_like(q));
    read.inverse = floats(inverse);
    read.grad_denominator = floats(grad_denominator);
  }
  check_launch(kOp, launch_read(read, Read::query_gradients, dtype, stream));
  if (together) {
    add_ranges(sums, grads, stream);
  } else {
    sum_up({read.phi, read.x, s.B, s.H, s.N, s.D, s.V, 0, 0, read.map, read.inverse, read.grad_denominator, nullptr,
            Side::left, nullptr},
           grads, dtype, stream);
  }
  return grads;
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

  void* stream = current_stream(q.device());
  const Dtype dtype = dtype_of(q);
  const at::Tensor grad = dense_last(grad_out);
  const State saved{state.contiguous(), key_sum.contiguous()};
  const int64_t blocks = cluster_blocks(s, dtype, true, q.device());
  const auto ranges = [&](int64_t tokens, int64_t fewest) {
    return blocks ? ranges_of_cluster(tokens, blocks) : cut_reads(s, tokens, dtype, true, fewest, q.device());
  };
  ReadParams queries =
      read_of(s, s.N, ranges(s.N, sums_beside_gradients(s.D, s.V) ? kFewestTiles : 1), map, saved, normalize);
  queries.eps = float(eps);
  queries.x = view_of(grad);
  queries.phi = view_of(q);
  queries.out = view_of(grad_q);
  ReadParams keys = read_of(s, s.M, ranges(s.M, 1), map, {}, normalize);
  keys.x = view_of(v);
  keys.phi = view_of(k);
  keys.out = view_of(grad_k);
  keys.second = view_of(grad_v);
  if (blocks) {
    check_launch(kOp, launch_cluster_backward({queries, keys}, dtype, stream));
  } else {
    const State grads = query_gradients(s, queries, q, stream);
    keys.state = floats(grads.state);
    keys.companion = normalize ? floats(grads.companion) : nullptr;
    check_launch(kOp, launch_read(keys, Read::key_gradients, dtype, stream));
  }
  return {grad_q, grad_k, grad_v};
}

TORCH_LIBRARY_IMPL(SOLA_CUDA_LIBRARY, SOLA_CUDA_KEY, m) {
  m.impl("linear_attention", &forward);
  m.impl("linear_attention_backward", &backward);
}

}  // namespace linear
}  // namespace sola::cuda
