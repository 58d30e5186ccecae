// what softmax forward and backward share
#pragma once

#include "cuda/kernel_params.h"
#include "cuda/tile.cuh"

namespace sola::cuda {

constexpr float kLn2 = 0.6931471805599453f;

// a block's head and rows: queries, or keys
struct SoftmaxPlace {
  int64_t head, batch, inner, first;
  int rows;
};

SOLA_DEVICE SoftmaxPlace place_of(const AttentionSizes& size, int64_t tokens, int tile) {
  const int64_t tiles = (tokens + tile - 1) / tile, head = blockIdx.x / tiles, first = blockIdx.x % tiles * tile;
  return {head, head / size.H, head % size.H, first, int(min(int64_t(tile), tokens - first))};
}

constexpr int64_t kEverything = int64_t(1) << 62;

// scores of keys that don't exist, or that come after the query of this lane's first row, become −Inf
template <int KT>
SOLA_DEVICE void hide(Sums<1, KT>& scores, int64_t first, int64_t keys, int64_t query) {
  if (first + 8 * KT <= keys && first + 8 * KT <= query - 7) return;
  const int t = lane_of() % 4;
#pragma unroll
  for (int n = 0; n < KT; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t key = first + 8 * n + 2 * t + i % 2;
      if (key >= keys || key > query + i / 2 * 8) scores[0][n][i] = -INFINITY;
    }
}

}  // namespace sola::cuda
