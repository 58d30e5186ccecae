// S = Σ w φ(x)ᵀ y and its companion c = Σ u φ(x), over ranges of tokens; and the sum of ranges
//
// One block per range, head, and tile of the state. All reads are of the tokens: the work is bound by memory.

#include "cuda/gather_walk.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.h"

namespace sola::cuda {
namespace {

template <class In, int T>
__global__ void __launch_bounds__(kGatherThreads<T>, resident_gathers(kDtype<In>, T)) gather(GatherParams p) {
  const int64_t across = (p.V + T - 1) / T, down = (p.D + T - 1) / T;
  int64_t index = blockIdx.x;
  const int v0 = int(index % across) * T, d0 = int(index / across % down) * T;
  index /= across * down;
  GatherSums<In, T> state;
  gather_tokens<In, T>(p, range_of(p, index), d0, v0, state);
  state.write(p.sums + index * (p.D * p.V + p.D), p.D, p.V, d0, v0, reinterpret_cast<float*>(shared_memory()));
}

constexpr int kReduceWarps = 8;

// A warp adds up every eighth range of 32 numbers, then the first adds the warps up: many loads are on their way, and
// the order is always the same.
__global__ void __launch_bounds__(kReduceWarps* kWarp) reduce(ReduceParams p) {
  float (*sums)[kWarp] = reinterpret_cast<float (*)[kWarp]>(shared_memory());
  const int64_t numbers = p.D * p.V + p.D, blocks = (numbers + kWarp - 1) / kWarp;
  const int64_t head = blockIdx.x / blocks, i = blockIdx.x % blocks * kWarp + lane_of();
  const float* from = p.sums + head * p.ranges * numbers + i;
  float sum = 0.0f;
  if (i < numbers) {
#pragma unroll 8
    for (int64_t range = warp_of(); range < p.ranges; range += kReduceWarps) sum += from[range * numbers];
  }
  sums[warp_of()][lane_of()] = sum;
  sync_block();
  if (warp_of() != 0 || i >= numbers) return;
  sum = 0.0f;
#pragma unroll
  for (int warp = 0; warp < kReduceWarps; ++warp) sum += sums[warp][lane_of()];
  if (i < p.D * p.V) {
    p.state[head * p.D * p.V + i] = sum;
  } else {
    p.companion[head * p.D + i - p.D * p.V] = sum;
  }
}

}  // namespace

int launch_gather(const GatherParams& p, Dtype dtype, void* stream) {
  return with_input(dtype, [&](auto in) {
    using In = decltype(in);
    return with_width<32, 64, 128>(p.D > p.V ? p.D : p.V, [&](auto width) {
      constexpr int T = decltype(width)::value;
      const int64_t tiles = ((p.D + T - 1) / T) * ((p.V + T - 1) / T);
      return launch(gather<In, T>, p.batches * p.heads * p.ranges * tiles, kGatherThreads<T>, kGatherBytes<In, T>,
                    stream, p);
    });
  });
}

int launch_reduce(const ReduceParams& p, void* stream) {
  return launch(reduce, p.heads * ((p.D * p.V + p.D + kWarp - 1) / kWarp), kReduceWarps * kWarp,
                sizeof(float) * kReduceWarps * kWarp, stream, p);
}

}  // namespace sola::cuda
