// linear attention in chunks of one tile: what outputs and gradients share
//
// With γ = e^(log decay) and the place p inside a chunk of L tokens, a token reads what lies to its left with γ^(p+1),
// what lies to its right with γ^(L−p) (docs/math.md derives the states), and its own chunk pair by pair with γ^|i−j|.
#pragma once

#include "cuda/state.cuh"

namespace sola::cuda {

struct ChunkPlace {
  int64_t head, batch, inner, chunk, first;
  int rows;
  int part, column;  // which columns of the result, and their first
};

SOLA_DEVICE ChunkPlace chunk_place(const ChunkedCall& call) {
  const int64_t blocks = call.batches * call.heads * call.chunks, index = blockIdx.x % blocks;
  const int64_t head = index / call.chunks, chunk = index % call.chunks, first = chunk * kTile;
  const int part = int(blockIdx.x / blocks), rows = int(min(int64_t(kTile), call.tokens - first));
  return {head, head / call.heads, head % call.heads, chunk, first, rows, part, part * kPartColumns};
}

// the columns of a block's part
template <class T>
SOLA_DEVICE Rows<T> part_of(Rows<T> rows, const ChunkPlace& at, int most) {
  return {rows.data + at.column, rows.stride, rows.rows, min(most, rows.columns - at.column)};
}

template <class In>
SOLA_DEVICE Rows<const In> chunk_rows(const View& view, const ChunkPlace& at, int64_t columns) {
  return {row_of<const In>(view, at.batch, at.first, at.inner), view.token, at.rows, int(columns)};
}

// numbers per row beside the tiles, and where float types keep pairs between two products
template <class In, int T>
struct ChunkTiles : StateTiles<In, T> {
  using Base = StateTiles<In, T>;
  using Mul = typename Base::Mul;
  static constexpr int kPairs = kRowStride<Mul, kTile>, kNumbers = 5 * kTile + 4;
  static constexpr size_t kBytes =
      Base::kTiles + sizeof(float) * kNumbers + (is_half<Mul> ? 0 : sizeof(Mul) * kTile * kPairs);

  SOLA_DEVICE explicit ChunkTiles(unsigned char* memory) : Base{memory} {}
  SOLA_DEVICE float* powers() const { return this->rest(); }                   // γ^0 … γ^64
  SOLA_DEVICE float* row_numbers() const { return this->rest() + kTile + 4; }  // two per row
  SOLA_DEVICE float* column_numbers() const { return row_numbers() + 2 * kTile; }
  SOLA_DEVICE Operand<Mul> pairs() const {
    Mul* scratch = reinterpret_cast<Mul*>(this->rest() + kNumbers);
    return {scratch + 16 * warp_of() * kPairs, kPairs};
  }
};

SOLA_DEVICE void load_powers(float* powers, float log_decay) {
  for (int i = int(threadIdx.x); i <= kTile; i += kThreads) powers[i] = expf(log_decay * float(i));
}

// one number per token of the chunk, `missing` where there is no array, 0 where there is no token
SOLA_DEVICE void load_numbers(float* to, const float* from, const ChunkedCall& call, const ChunkPlace& at,
                              float missing) {
  const int i = int(threadIdx.x);
  if (i >= kTile) return;
  to[i] = i >= at.rows ? 0.0f : from ? from[at.head * call.tokens + at.first + i] : missing;
}

// weight of the pair in a row and a column of the chunk
SOLA_DEVICE float pair_weight(const ChunkedCall& call, const float* powers, int row, int column) {
  const int distance = row > column ? row - column : column - row;
  const bool hidden = call.causal && (call.rows_are_keys ? column < row : column > row);
  return hidden ? 0.0f : powers[distance];
}

// sums += f(x) · g(y)ᵀ, 64 × 64, over the columns of both
template <class In, int T, class F, class G>
SOLA_DEVICE void multiply_pairs(Sums<1, kTile / 8>& sums, StateTiles<In, T> tiles, Rows<const In> x, const F& f,
                                Rows<const In> y, const G& g) {
  using Mul = typename StateTiles<In, T>::Mul;
  constexpr int KT = kDepth<T>, stride = StateTiles<In, T>::kStride;
  for (int k = 0; k < x.columns; k += KT) {
    const int columns = min(KT, x.columns - k);
    sync_block();
    load_tile<kTile, KT, kThreads>(Rows<const In>{x.data + k, x.stride, x.rows, columns}, tiles.left(), stride, f);
    load_tile<kTile, KT, kThreads>(Rows<const In>{y.data + k, y.stride, y.rows, columns}, tiles.right(), stride, g);
    sync_block();
    multiply<Along::depth, Along::depth>(sums, Operand<Mul>{tiles.left() + 16 * warp_of() * stride, stride},
                                         Operand<Mul>{tiles.right(), stride}, KT);
  }
}

// sums += pairs · f(y), 64 × T
template <class In, int T, class F>
SOLA_DEVICE void spread_pairs(Sums<1, T / 8>& sums, const Sums<1, kTile / 8>& pairs, ChunkTiles<In, T> tiles,
                              Rows<const In> y, const F& f) {
  using Tiles = ChunkTiles<In, T>;
  using Mul = typename Tiles::Mul;
  sync_block();
  load_tile<kTile, T, kThreads>(y, tiles.right(), Tiles::kWide, f);
  sync_block();
  multiply_sums<Along::other>(sums, pairs, Operand<Mul>{tiles.right(), Tiles::kWide}, tiles.pairs());
}

// the state that enters a chunk, and whether there is one: none at the ends of a sequence
SOLA_DEVICE const float* state_of(const ChunkStates& of, const ChunkedCall& call, const ChunkPlace& at, Side side) {
  const float* states = side == Side::left ? of.left : of.right;
  const bool outermost = side == Side::left ? at.chunk == 0 : at.chunk == call.chunks - 1;
  return states && !outermost ? states + (at.head * call.chunks + at.chunk) * (call.D * call.V + call.D) : nullptr;
}

// with which power of γ a row reads the state of one side
SOLA_DEVICE int reads(Side side, const ChunkPlace& at, int row) {
  return side == Side::left ? row + 1 : at.rows > row ? at.rows - row : 0;
}

}  // namespace sola::cuda
