// channel mix: what its kernels share
//
// out = sigmoid(R x_r) ⊙ V relu(K x_k)². A block has some tokens and walks over hidden units: a few rows of K give its
// tokens some units, whose squares meet the same columns of V at once. Sums of the outputs stay in registers, and no
// hidden unit leaves the multiprocessor. Rows of R follow in the place of K's, and give the gates.
#pragma once

#include "cuda/kernel_params.h"
#include "cuda/launch.h"
#include "cuda/tile.cuh"

namespace sola::cuda {

template <class In>
SOLA_DEVICE Rows<const In> rows_of(const void* data, int64_t stride, int64_t first_row, int64_t first_column,
                                   int64_t rows, int64_t columns) {
  return {static_cast<const In*>(data) + first_row * stride + first_column, stride, int(rows), int(columns)};
}

template <class In>
SOLA_DEVICE Rows<In> out_rows(const ChannelMixParams& p, int64_t first, int tokens) {
  return {static_cast<In*>(const_cast<void*>(p.out.data)) + first * p.out.stride, p.out.stride, tokens, int(p.C)};
}

// what a block reads of the weights, step by step: blocks of `units` hidden units, then of gates
template <class In, int units>
struct MixWeights {
  const ChannelMixParams& p;
  int hidden, steps;

  SOLA_DEVICE explicit MixWeights(const ChannelMixParams& params)
      : p(params), hidden(int((params.M + units - 1) / units)), steps(hidden + int((params.C + units - 1) / units)) {}

  // rows of K, or of R
  SOLA_DEVICE Rows<const In> rows(int step) const {
    const bool of_key = step < hidden;
    const int64_t first = int64_t(of_key ? step : step - hidden) * units, all = of_key ? p.M : p.C;
    return rows_of<In>(of_key ? p.key : p.receptance, p.C, first, 0, min(int64_t(units), all - first), p.C);
  }
  // hidden units that exist
  SOLA_DEVICE int count(int step) const { return int(min(int64_t(units), p.M - int64_t(step) * units)); }
  // columns of V
  SOLA_DEVICE Rows<const In> columns(int step) const {
    const int64_t first = int64_t(step) * units;
    return rows_of<In>(p.value, p.M, 0, first, p.C, min(int64_t(units), p.M - first));
  }
};

// calls f(In{}, integral_constant) for a call's type and the width of its tiles
template <class F>
int with_mix_width(const ChannelMixParams& p, Dtype dtype, const F& f) {
  return with_half(
      dtype, [&](auto in) { return with_width<32, 64, 96, 128, 192>(p.C, [&](auto width) { return f(in, width); }); });
}

// max(x, 0); NaN stays
SOLA_DEVICE float relu(float x) { return x < 0.0f ? 0.0f : x; }

SOLA_DEVICE float square(float x) { return x * x; }

// The squares of a step's units, in place. Of units beyond `count` they are 0, also where infinite tokens have met
// their zeros.
template <int MT, int NT>
SOLA_DEVICE void square_units(Sums<MT, NT>& units, int count) {
  for_sums<MT, NT>([&](int m, int n, int i, int, int) { units[m][n][i] = square(relu(units[m][n][i])); });
  if (count >= 8 * NT) return;
  for_sums<MT, NT>([&](int m, int n, int i, int, int column) {
    if (column >= count) units[m][n][i] = 0.0f;
  });
}

// 1 / (1 + e^−x)
SOLA_DEVICE float sigmoid(float x) { return fast_reciprocal(1.0f + fast_exp2(-kLog2e * x)); }

}  // namespace sola::cuda
