// S = Σ w φ(x)ᵀ y and its companion c = Σ u φ(x), over ranges of tokens; and the sum of ranges
//
// One block per range, head, and tile of the state. All reads are of the tokens: the work is bound by memory.

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/state.cuh"

namespace sola::cuda {
namespace {

// warps over the rows of a T × T tile of the state, then over its columns
template <int T>
struct GatherWarps {
  static constexpr int MT = T == 128 ? 2 : 1, kDown = T / (16 * MT), kAcross = 4 / kDown, NT = T / 8 / kAcross;
};

template <class In, int T>
struct GatherTiles {
  using Mul = typename WideRange<In>::Mul;
  static constexpr int kStride = kRowStride<Mul, T>;
  static constexpr size_t kBytes = sizeof(Mul) * 2 * kTile * kStride + sizeof(float) * 2 * kTile;
};

// w and u of the tokens of a tile
SOLA_DEVICE void load_weights(const GatherParams& p, int64_t head, int64_t first, int64_t begin, int64_t end,
                              float* w) {
  const int i = int(threadIdx.x);
  if (i < kTile) {
    const int64_t token = first + i, place = head * p.tokens + token;
    float power = 1.0f, weight = 0.0f, coefficient = 0.0f;
    if (token < end) {
      if (p.decay) {
        const float distance = float(p.side == Side::left ? end - 1 - token : token - begin);
        power = expf(log_decay(p.decay, head % p.heads) * distance) * (p.distances ? distance : 1.0f);
      }
      weight = power * (p.weight ? p.weight[place] : 1.0f);
      coefficient = power * (p.coefficient ? p.coefficient[place] : 1.0f);
    }
    w[i] = weight;
    w[kTile + i] = coefficient;
  }
}

template <class In, int T>
__global__ void __launch_bounds__(kThreads, 1) gather(GatherParams p) {
  using Mul = typename WideRange<In>::Mul;
  using Warps = GatherWarps<T>;
  constexpr int stride = GatherTiles<In, T>::kStride;
  Mul* x = reinterpret_cast<Mul*>(shared_memory());
  Mul* y = x + kTile * stride;
  float* weights = reinterpret_cast<float*>(y + kTile * stride);

  const int64_t across = (p.V + T - 1) / T, down = (p.D + T - 1) / T;
  int64_t index = blockIdx.x;
  const int v0 = int(index % across) * T, d0 = int(index / across % down) * T;
  index /= across * down;
  const int64_t range = index % p.ranges, head = index / p.ranges, batch = head / p.heads;
  const int64_t begin = range * p.per_range, end = min(begin + p.per_range, p.tokens);

  float sums[Warps::MT][Warps::NT][4];
  clear(sums);
  float companion = 0.0f;
  const int down_warp = warp_of() / Warps::kAcross, across_warp = warp_of() % Warps::kAcross;
  for (int64_t first = begin; first < end; first += kTile) {
    const int rows = int(min(int64_t(kTile), end - first));
    sync_block();
    load_weights(p, head, first, begin, end, weights);
    sync_block();
    load_tile<kTile, T, kThreads>(Rows<const In>{row_of<const In>(p.x, batch, first, head % p.heads) + d0, p.x.token,
                                                 rows, min(T, int(p.D) - d0)},
                                  x, stride, [&](int, float number) { return feature<is_half<In>>(p.map, number); });
    load_tile<kTile, T, kThreads>(Rows<const In>{row_of<const In>(p.y, batch, first, head % p.heads) + v0, p.y.token,
                                                 rows, min(T, int(p.V) - v0)},
                                  y, stride, [&](int row, float number) { return weights[row] * number; });
    sync_block();
    multiply<Along::other, Along::other>(sums, Operand<Mul>{x + 16 * Warps::MT * down_warp, stride},
                                         Operand<Mul>{y + 8 * Warps::NT * across_warp, stride}, kTile);
    if (v0 == 0 && int(threadIdx.x) < T) {
      for (int row = 0; row < kTile; ++row)
        companion = fmaf(to_float(x[row * stride + int(threadIdx.x)]), weights[kTile + row], companion);
    }
  }

  float* to = p.sums + (head * p.ranges + range) * (p.D * p.V + p.D);
  for_sums<Warps::MT, Warps::NT>([&](int m, int n, int i, int row, int column) {
    const int64_t d = d0 + 16 * Warps::MT * down_warp + row, v = v0 + 8 * Warps::NT * across_warp + column;
    if (d < p.D && v < p.V) to[d * p.V + v] = sums[m][n][i];
  });
  const int64_t d = d0 + int(threadIdx.x);
  if (v0 == 0 && int(threadIdx.x) < T && d < p.D) to[p.D * p.V + d] = companion;
}

__global__ void __launch_bounds__(256) reduce(ReduceParams p) {
  const int64_t numbers = p.D * p.V + p.D, blocks = (numbers + 255) / 256;
  const int64_t head = blockIdx.x / blocks, i = blockIdx.x % blocks * 256 + threadIdx.x;
  if (i >= numbers) return;
  const float* from = p.sums + head * p.ranges * numbers + i;
  float sum = 0.0f;
#pragma unroll 8
  for (int64_t range = 0; range < p.ranges; ++range) sum += from[range * numbers];
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
      return launch(gather<In, T>, p.batches * p.heads * p.ranges * tiles, kThreads, GatherTiles<In, T>::kBytes, stream,
                    p);
    });
  });
}

int launch_reduce(const ReduceParams& p, void* stream) {
  return launch(reduce, p.heads * ((p.D * p.V + p.D + 255) / 256), 256, 0, stream, p);
}

}  // namespace sola::cuda
