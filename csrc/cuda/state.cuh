// products with a state that lies in global memory, tile by tile
#pragma once

#include "cuda/kernel_params.h"
#include "cuda/tile.cuh"

namespace sola::cuda {

// depth of the tiles that are multiplied at a time
constexpr int kDepth = 64;

// How the kernels that keep 64 × T sums use shared memory: a tile of the left operand, one of the right, the sums
// on their way out in the place of both, and a few numbers per row.
template <class In, int T>
struct StateTiles {
  using Mul = typename WideRange<In>::Mul;
  static constexpr int kStride = kRowStride<Mul, kDepth>, kWide = kRowStride<Mul, T>, kOut = kRowStride<In, T>;
  static constexpr size_t kLeft = sizeof(Mul) * kTile * kStride;
  static constexpr size_t kRightRows = kTile * kWide, kRightColumns = (T > kTile ? T : kTile) * kStride;
  static constexpr size_t kRight = sizeof(Mul) * (kRightRows > kRightColumns ? kRightRows : kRightColumns);
  static constexpr size_t kStaging = sizeof(float) * kTile * kRowStride<float, T>;
  static constexpr size_t kTiles = kLeft + kRight > kStaging ? kLeft + kRight : kStaging;

  unsigned char* memory;

  SOLA_DEVICE Mul* left() const { return reinterpret_cast<Mul*>(memory); }
  SOLA_DEVICE Mul* right() const { return reinterpret_cast<Mul*>(memory + kLeft); }
  SOLA_DEVICE In* staging() const { return reinterpret_cast<In*>(memory); }
  SOLA_DEVICE float* rest() const { return reinterpret_cast<float*>(memory + kTiles); }
};

// sums += f(x) · state (along = other: the state's rows are the depth) or f(x) · stateᵀ (along = depth). `see` looks at
// each tile of f(x) with the depth at which it starts.
template <Along along, class In, int T, class F, class See>
SOLA_DEVICE void multiply_state(Sums<1, T / 8>& sums, StateTiles<In, T> tiles, Rows<const In> x, const F& f,
                                Rows<const float> state, const See& see) {
  using Tiles = StateTiles<In, T>;
  const int depth = x.columns;
  for (int k = 0; k < depth; k += kDepth) {
    sync_block();
    load_tile<kTile, kDepth, kThreads>(Rows<const In>{x.data + k, x.stride, x.rows, min(kDepth, depth - k)},
                                       tiles.left(), Tiles::kStride, f);
    const auto as_is = [](int, float y) { return y; };
    if constexpr (along == Along::other) {
      const Rows<const float> part{state.data + k * state.stride, state.stride, min(kDepth, depth - k), state.columns};
      load_tile<kDepth, T, kThreads>(part, tiles.right(), Tiles::kWide, as_is);
    } else {
      const Rows<const float> part{state.data + k, state.stride, state.rows, min(kDepth, depth - k)};
      load_tile<T, kDepth, kThreads>(part, tiles.right(), Tiles::kStride, as_is);
    }
    sync_block();
    constexpr int stride = along == Along::other ? Tiles::kWide : Tiles::kStride;
    using Mul = typename Tiles::Mul;
    multiply<Along::depth, along>(sums, Operand<Mul>{tiles.left() + 16 * warp_of() * Tiles::kStride, Tiles::kStride},
                                  Operand<Mul>{tiles.right(), stride}, kDepth);
    see(tiles.left(), k);
  }
}

// a block's 64 × T sums to global memory
template <class In, int T>
SOLA_DEVICE void write_sums(const Sums<1, T / 8>& sums, StateTiles<In, T> tiles, Rows<In> to) {
  using Tiles = StateTiles<In, T>;
  sync_block();
  store_sums(sums, tiles.staging() + 16 * warp_of() * Tiles::kOut, Tiles::kOut);
  sync_block();
  store_tile<kTile, T, kThreads>(tiles.staging(), Tiles::kOut, to);
}

// Gives a warp's rows of sums to f(row, numbers) one by one, with column 32·j + lane in numbers[j], and what f leaves
// there to `to`: whole rows of the caller's tensors are then read and written side by side.
template <class In, int T, class F>
SOLA_DEVICE void finish_rows(const Sums<1, T / 8>& sums, StateTiles<In, T> tiles, Rows<In> to, const F& f) {
  constexpr int stride = kRowStride<float, T>;
  float* staging = reinterpret_cast<float*>(tiles.memory) + 16 * warp_of() * stride;
  sync_block();
  store_sums(sums, staging, stride);
  sync_warp();
#pragma unroll 1
  for (int i = 0; i < 16; ++i) {
    const int row = 16 * warp_of() + i;
    if (row >= to.rows) break;
    float numbers[T / 32];
#pragma unroll
    for (int j = 0; j < T / 32; ++j) numbers[j] = staging[i * stride + 32 * j + lane_of()];
    f(row, numbers);
#pragma unroll
    for (int j = 0; j < T / 32; ++j) {
      const int column = 32 * j + lane_of();
      if (column < to.columns) to.data[row * to.stride + column] = from_float<In>(numbers[j]);
    }
  }
}

// φ of a row, laid out as finish_rows does; 0 outside
template <class In, int T>
SOLA_DEVICE void load_phi(FeatureMap map, Rows<const In> x, int row, float (&phi)[T / 32]) {
#pragma unroll
  for (int j = 0; j < T / 32; ++j) {
    const int column = 32 * j + lane_of();
    phi[j] = column < x.columns ? feature<is_half<In>>(map, to_float(x.data[row * x.stride + column])) : 0.0f;
  }
}

}  // namespace sola::cuda
