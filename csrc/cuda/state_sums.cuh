// S = Σ x_iᵀ y_i and c = Σ u_i x_i over the tokens that a block walks through, in registers
#pragma once

#include "cuda/kernel_params.h"
#include "cuda/tile.cuh"

namespace sola::cuda {

// One step of tokens in shared memory: kRows rows of x and of y. The padding of y's rows holds u, as a sum of numbers
// of the type that is multiplied: three have all bits of a float.
template <class Mul, int T, int kRows>
struct StepTiles {
  static constexpr int kStride = kRowStride<Mul, T>;
  // u is read with what lies behind it in 16 columns, which nobody looks at
  static constexpr size_t kBytes = sizeof(Mul) * (2 * kRows * kStride + 16) - 16;
  // two of them need one barrier per step; of wide types one must do
  static constexpr int kBuffers = is_half<Mul> ? 2 : 1;

  Mul* x;

  SOLA_DEVICE StepTiles(unsigned char* memory, int step)
      : x(reinterpret_cast<Mul*>(memory + step % kBuffers * kBytes)) {}
  SOLA_DEVICE Mul* y() const { return x + kRows * kStride; }

  SOLA_DEVICE Mul* u(int row) const { return y() + row * kStride + T; }
  SOLA_DEVICE void store_u(int row, float x) const { store_parts(x, u(row)); }
  // 1, or 0 for a row that doesn't exist
  SOLA_DEVICE void store_one(int row, bool exists) const {
#pragma unroll
    for (int part = 0; part < kParts<Mul>; ++part) u(row)[part] = from_float<Mul>(part == 0 && exists ? 1.0f : 0.0f);
  }
};

// A block's T × T sums: warps lie kDown × kAcross over them. The companion is a block of columns more, of which the
// first MT warps beside each other have 16 rows each.
template <class Mul, int T, int kWarps>
struct StateSums {
  static constexpr int MT = T == 32 ? 1 : 2, kDown = T / (16 * MT), kAcross = kWarps / kDown, NT = T / 8 / kAcross;

  float sums[MT][NT][4];
  float companion[1][1][4];

  SOLA_DEVICE StateSums() {
    clear(sums);
    clear(companion);
  }

  SOLA_DEVICE static int down() { return warp_of() / kAcross; }
  SOLA_DEVICE static int across() { return warp_of() % kAcross; }

  template <int kRows>
  SOLA_DEVICE void add(const StepTiles<Mul, T, kRows>& tiles) {
    constexpr int stride = StepTiles<Mul, T, kRows>::kStride;
    const Operand<Mul> x{tiles.x + 16 * MT * down(), stride};
    multiply<Along::other, Along::other>(sums, x, Operand<Mul>{tiles.y() + 8 * NT * across(), stride}, kRows);
    static_assert(MT <= kAcross);
    if (across() >= MT) return;
    const Operand<Mul> rows{x.data + 16 * across(), stride}, u{tiles.y() + T, stride};
    if constexpr (is_rounded<Mul>) {
#pragma unroll
      for (int k = 0; k < kRows; k += kProductDepth<Mul>) {
        uint32_t a[4], b[4];
        left_fragment<Along::other>(a, rows, 0, k);
        right_fragments<Along::other>(b, u, 0, k);
        mma(companion[0][0], a, b[0], b[1], Mul{});
      }
    } else {
      multiply<Along::other, Along::other>(companion, rows, u, kRows);
    }
  }

  // the part of (S, c) that starts at row d0 and column v0, where the whole is D × V; c where v0 is 0. `scratch` is
  // shared memory that nobody uses any more.
  SOLA_DEVICE void write(float* to, int64_t D, int64_t V, int64_t d0, int64_t v0, float* scratch) const {
    const int64_t first = d0 + 16 * MT * down(), left = v0 + 8 * NT * across();
    for_sums<MT, NT>([&](int m, int n, int i, int row, int column) {
      const int64_t d = first + row, v = left + column;
      if (d < D && v < V) to[d * V + v] = sums[m][n][i];
    });
    if (v0 != 0) return;
    if (across() < MT) {
      for_sums<1, 1>([&](int, int, int i, int row, int column) {
        scratch[8 * (16 * (MT * down() + across()) + row) + column] = companion[0][0][i];
      });
    }
    sync_block();
    const int d = int(threadIdx.x);
    if (d >= T || d0 + d >= D) return;
    float sum = 0.0f;
    for (int part = kParts<Mul> - 1; part >= 0; --part) sum += scratch[8 * d + part];
    to[D * V + d0 + d] = sum;
  }
};

}  // namespace sola::cuda
