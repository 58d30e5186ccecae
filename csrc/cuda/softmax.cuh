// what softmax forward and backward share
#pragma once

#include "cuda/kernel_params.h"
#include "cuda/tile.cuh"

namespace sola::cuda {

constexpr float kLn2 = 0.6931471805599453f;

// A block's head and rows, queries or keys, and which part of their columns. A grid has less than 2³¹ blocks, and a
// sequence fewer tokens (the host looks).
struct SoftmaxPlace {
  int head, batch, inner, rows, first, part;
};

// `last_first`: the last rows of a head come first, for queries that see the more the later they are. A head, and with
// the last head the kernel, then ends with blocks that have little to do.
SOLA_DEVICE SoftmaxPlace place_of(const AttentionSizes& size, int64_t tokens, int tile, bool last_first) {
  const int tiles = int((tokens + tile - 1) / tile), heads = int(size.H), blocks = int(size.B) * heads * tiles;
  const int index = int(blockIdx.x) % blocks, head = index / tiles, place = index % tiles;
  const int first = (last_first ? tiles - 1 - place : place) * tile;
  return {head, head / heads, head % heads, min(tile, int(tokens) - first), first, int(blockIdx.x) / blocks};
}

constexpr int kEverything = 0x7fffffff - 64;

// scores of keys that don't exist, or that come after the query of this lane's first row, become −Inf
template <int MT, int KT>
SOLA_DEVICE void hide(Sums<MT, KT>& scores, int first, int keys, int query) {
  if (first + 8 * KT <= keys && first + 8 * KT <= query - 7) return;
  const int t = lane_of() % 4;
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int n = 0; n < KT; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = first + 8 * n + 2 * t + i % 2;
        if (key >= keys || key > query + 16 * m + i / 2 * 8) scores[m][n][i] = -INFINITY;
      }
}

// whose gradients a block of the backward sums up
enum class Of { keys, queries };

SOLA_DEVICE const float2* saved_of(const SoftmaxBackwardParams& params, int head) {
  return reinterpret_cast<const float2*>(params.saved) + int64_t(head) * params.op.size.N;
}

// A warp's 16 rows of gradients; `staging` has room for the block's rows, kRowStride apart.
template <class In, int T, int kRows, int kBlock>
SOLA_DEVICE void write_gradients(const Sums<1, T / 8>& sums, unsigned char* staging, const View& view,
                                 const SoftmaxPlace& at, int64_t columns) {
  constexpr int stride = kRowStride<In, T>;
  In* rows = reinterpret_cast<In*>(staging);
  sync_block();
  store_sums(sums, rows + 16 * warp_of() * stride, stride);
  sync_block();
  store_tile<kRows, T, kBlock>(
      rows, stride, Rows<In>{row_of<In>(view, at.batch, at.first, at.inner), view.token, at.rows, int(columns)});
}

}  // namespace sola::cuda
