// what softmax forward and backward share
#pragma once

#include <type_traits>

#include "cpu/tiles.h"

namespace sola::SOLA_ISA {

// queries in a tile, the width of every product: four AVX-512 registers of float
constexpr int64_t kTile = 64;

// oneDNN addresses rows in 32 bits: rows further apart than this are copied first
constexpr int64_t kFarthestRows = int64_t(1) << 24;

constexpr double kLog2e = 1.4426950408889634;

// the columns to compute when `rows` queries are left
template <class A>
constexpr int64_t tile_width(int64_t rows) {
  return rows < kTile ? round_up<A>(rows) : kTile;
}

// scores(j, i) of keys k0 + j after query first + i become `value`
template <class A>
void mask_future(A* scores, int64_t k0, int64_t count, int64_t first, A value) {
  for (int64_t j = 0; j < count; ++j) {
    const int64_t hidden = k0 + j - first;
    if (hidden > 0) fill(scores + j * kTile, hidden < kTile ? hidden : kTile, value);
  }
}

// What is left to multiply scores by: a scale that is not positive is applied at once. So the greatest score has the
// greatest weight, and a hidden one stays −Inf.
template <class A>
A apply_scale(A* scores, int64_t keys, int64_t width, A scale) {
  if (scale > 0) return scale;
  for (int64_t j = 0; j < keys; ++j) {
    for (int64_t c = 0; c < width; c += kLanes<A>) store(scores + j * kTile + c, load(scores + j * kTile + c) * scale);
  }
  return 1;
}

// what turns such a score into nats, in which logsumexp is
template <class A>
A nats_of_score(double scale) {
  return A(scale * kLog2e) > 0 ? A(scale) : A(1 / kLog2e);
}

// two rows of weights; for bfloat16 they are a right-hand operand, so neighbours in j are paired up
template <class T>
SOLA_INLINE void store_pair(T* weights, int64_t j, int64_t c, Vec<T> first, Vec<T> second) {
  store(weights + j * kTile + c, first);
  store(weights + (j + 1) * kTile + c, second);
}
SOLA_INLINE void store_pair(bf16* weights, int64_t j, int64_t c, Vec<float> first, Vec<float> second) {
  // weights are at most 1, so adding half a unit can't overflow; a NaN may get lost here but stays in the sum
  const auto low = (bit_cast<Vec<uint32_t>>(first) + 0x8000u) >> 16;
  const auto high = (bit_cast<Vec<uint32_t>>(second) + 0x8000u) & 0xffff0000u;
  typedef Vec<uint32_t> Pairs __attribute__((aligned(2), may_alias));
  *reinterpret_cast<Pairs*>(weights + j * kTile + 2 * c) = low | high;
}

}  // namespace sola::SOLA_ISA
