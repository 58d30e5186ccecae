// S = Σ x_iᵀ y_i and c = Σ u_i x_i over the tokens that a block walks through, in registers
#pragma once

#include "cuda/kernel_params.h"
#include "cuda/tile.cuh"

namespace sola::cuda {

// one step of tokens in shared memory: kStep rows of x and of y, and a number per row
template <class Mul, int T, int kStep>
struct StepTiles {
  static constexpr int kStride = kRowStride<Mul, T>;
  static constexpr size_t kBytes = sizeof(Mul) * 2 * kStep * kStride + sizeof(float) * kStep;
  // two of them need one barrier per step; of wide types one must do
  static constexpr int kBuffers = is_half<Mul> ? 2 : 1;

  Mul* x;

  SOLA_DEVICE StepTiles(unsigned char* memory, int step)
      : x(reinterpret_cast<Mul*>(memory + step % kBuffers * kBytes)) {}
  SOLA_DEVICE Mul* y() const { return x + kStep * kStride; }
  SOLA_DEVICE float* u() const { return reinterpret_cast<float*>(y() + kStep * kStride); }
};

// A block's T × T sums: warps lie kDown × kAcross over them. Every warp adds up the companion of its share of each
// step.
template <class Mul, int T, int kWarps>
struct StateSums {
  static constexpr int MT = T == 32 ? 1 : 2, kDown = T / (16 * MT), kAcross = kWarps / kDown, NT = T / 8 / kAcross;
  static constexpr size_t kScratchBytes = sizeof(float) * kWarps * T;

  float sums[MT][NT][4];
  float companion[T / 32];

  SOLA_DEVICE StateSums() {
    clear(sums);
#pragma unroll
    for (int j = 0; j < T / 32; ++j) companion[j] = 0.0f;
  }

  // the columns of the companion that a lane owns: neighbours where they share a word
  SOLA_DEVICE static int column_of(int j) {
    return is_half<Mul> && T > 32 ? j / 2 * 64 + 2 * lane_of() + j % 2 : 32 * j + lane_of();
  }

  template <int kStep>
  SOLA_DEVICE void add(const StepTiles<Mul, T, kStep>& tiles) {
    constexpr int stride = StepTiles<Mul, T, kStep>::kStride;
    const int down = warp_of() / kAcross, across = warp_of() % kAcross;
    multiply<Along::other, Along::other>(sums, Operand<Mul>{tiles.x + 16 * MT * down, stride},
                                         Operand<Mul>{tiles.y() + 8 * NT * across, stride}, kStep);
    constexpr int kShare = kStep / kWarps;
    static_assert(kShare % 4 == 0);
    const Vec4* u = reinterpret_cast<const Vec4*>(tiles.u() + warp_of() * kShare);
    const Mul* x = tiles.x + warp_of() * kShare * stride;
#pragma unroll
    for (int row = 0; row < kShare; row += 4) {
      float four[4];
      unpack<float>(u[row / 4], four);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < T / 32; ++j)
          companion[j] = fmaf(to_float(x[(row + i) * stride + column_of(j)]), four[i], companion[j]);
    }
  }

  // the part of (S, c) that starts at row d0 and column v0, where the whole is D × V; c where v0 is 0. `scratch` is
  // shared memory that nobody uses any more.
  SOLA_DEVICE void write(float* to, int64_t D, int64_t V, int64_t d0, int64_t v0, float* scratch) const {
    const int64_t first = d0 + 16 * MT * (warp_of() / kAcross), left = v0 + 8 * NT * (warp_of() % kAcross);
    for_sums<MT, NT>([&](int m, int n, int i, int row, int column) {
      const int64_t d = first + row, v = left + column;
      if (d < D && v < V) to[d * V + v] = sums[m][n][i];
    });
    if (v0 != 0) return;
#pragma unroll
    for (int j = 0; j < T / 32; ++j) scratch[warp_of() * T + column_of(j)] = companion[j];
    sync_block();
    const int i = int(threadIdx.x);
    if (i >= T || d0 + i >= D) return;
    float sum = 0.0f;
    for (int warp = 0; warp < kWarps; ++warp) sum += scratch[warp * T + i];
    to[D * V + d0 + i] = sum;
  }
};

}  // namespace sola::cuda
