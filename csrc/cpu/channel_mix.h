// what channel mix forward and backward share
//
// out = sigmoid(R x_r) ⊙ V relu(K x_k)². Everything is transposed, units × tokens: weights enter products as they lie,
// and gates and squares run along vectors of tokens.
#pragma once

#include "cpu/multiplier.h"
#include "cpu/softmax.h"

// N tokens, C channels, M hidden units; a tile is kTile tokens wide

namespace sola::SOLA_ISA {

// hidden units per block: with a tile of tokens they stay in the first cache
constexpr int64_t kUnits = 128;

constexpr int64_t tiles_of(int64_t rows) { return (rows + kTile - 1) / kTile; }

// 1 / (1 + e^-x) without overflow; NaN stays
template <class A>
SOLA_INLINE Vec<A> sigmoid(Vec<A> x) {
  const Vec<A> decayed = vexp2<false>((x < A(0) ? x : -x) * A(kLog2e));
  const Vec<A> share = A(1) / (A(1) + decayed);
  return x < A(0) ? decayed * share : share;
}

// max(x, 0); NaN stays
template <class V>
SOLA_INLINE V relu(V x) {
  return x < 0 ? V{} : x;
}

// a block of weights as a left operand, copied where they are of another type
template <class Mul, class In>
Left<Mul> weights_block(const void* weights, int64_t offset, int64_t stride, int64_t rows, int64_t columns, Mul* copy) {
  const In* from = static_cast<const In*>(weights) + offset;
  if constexpr (std::is_same_v<In, Mul>) {
    return {from, stride, 1};
  } else {
    load_rows(from, stride, rows, columns, copy, columns);
    return {copy, columns, 1};
  }
}

// room for such a copy
template <class Mul, class In>
Mul* take_weights(Arena& arena, int64_t count) {
  return std::is_same_v<In, Mul> ? nullptr : arena.take<Mul>(count);
}

template <class In>
const In* row(const Rows& rows, int64_t token) {
  return static_cast<const In*>(rows.data) + token * rows.stride;
}

// a tile (rows × kTile) of sums as the right operand of a product; `copy` has room for a row more
template <class Mul, class A>
const Mul* as_right(const A* tile, int64_t rows, Mul* copy) {
  if constexpr (std::is_same_v<A, Mul>) {
    return tile;
  } else {
    pack_pairs(tile, kTile, rows, kTile, copy);
    return copy;
  }
}

// a tile (C × tokens) into rows of the caller's
template <class In, class A>
void store_tile(const A* tile, int64_t tokens, int64_t C, const Rows& to, int64_t first, A* staging) {
  transpose_rows(tile, kTile, C, tokens, staging, C);
  store_rows(staging, C, tokens, C, const_cast<In*>(row<In>(to, first)), to.stride);
}

}  // namespace sola::SOLA_ISA
