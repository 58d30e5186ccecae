// bidirectional WKV: the decaying scan that forward and backward share, one channel to a thread
//
// A scan sums values under weights e^(x_i − decay·distance), x_i a log-weight per token and channel. Tokens are taken
// in tiles: with M the largest x of a tile and E_i = e^(x_i − M), the sums inside a tile need one exponential per token
// and multiplications by λ = e^−decay; a state (values, m), standing for values · e^m, carries them from tile to tile.
//
// Nothing that counts is lost as long as |decay|·T + |bonus| ≤ 40 for a tile of T tokens: a token whose E underflows
// (e^−86) is outweighed at every place that it reaches by the token that holds the maximum, by e^46 at least. Where
// decay or bonus are too large for that even with few tokens, tiles shrink to one token and decay moves into m.
#pragma once

#include "cuda/kernel_params.h"
#include "cuda/tile.cuh"

namespace sola::cuda {

// the log-weight of an empty state: finite, so that differences never turn into Inf − Inf
constexpr float kEmpty = -1e30f;

// 1 for NaN, so that it goes on
SOLA_DEVICE float larger(float a, float b) { return a > b || a != a ? a : b; }

// The sums of K values over the tokens on one side. With K = 4 the last two are the derivatives of the first two:
// Σ distance · weight · value, where the nearest token has distance 0. `gauge` is a positive number of the size of the
// summed weights, to keep the values in range.
template <int K>
struct Scan {
  float value[K] = {}, gauge = 0.0f, m = kEmpty;

  SOLA_DEVICE void rescale(float factor) {
#pragma unroll
    for (int i = 0; i < K; ++i) value[i] *= factor;
    gauge *= factor;
  }
  // factors that underflow stand for sums that no longer count
  SOLA_DEVICE void refer_to(float reference) {
    rescale(expf(m - reference));
    m = reference;
  }
  // a factor of 1 + x for a tiny x
  SOLA_DEVICE void grow(float x) {
#pragma unroll
    for (int i = 0; i < K; ++i) value[i] = fmaf(value[i], x, value[i]);
  }
  // in range nothing happens, so nothing is rounded
  SOLA_DEVICE void keep_in_range() {
    if (gauge > 0x1p30f || (gauge < 0x1p-30f && gauge > 0.0f)) {
      m += logf(gauge);
      rescale(1.0f / gauge);
    }
  }
  // everything moves `tokens` away
  SOLA_DEVICE void move(float tokens, float decay) {
    if constexpr (K == 4) {
      value[2] = fmaf(tokens, value[0], value[2]);
      value[3] = fmaf(tokens, value[1], value[3]);
    }
    m -= tokens * decay;
  }
  SOLA_DEVICE void add(Scan other) {
    const float reference = larger(m, other.m);
    refer_to(reference);
    other.refer_to(reference);
#pragma unroll
    for (int i = 0; i < K; ++i) value[i] += other.value[i];
    gauge += other.gauge;
    keep_in_range();
  }
};

// what the scan needs to know about a channel
struct Channel {
  float decay, bonus, lambda, drift;
  int tile;

  // kTokens: the longest tile
  template <int kTokens>
  SOLA_DEVICE void load(float rate, float extra) {
    decay = rate;
    bonus = extra;
    lambda = expf(-rate);
    // −decay − log λ: λ is rounded, and thousands of tokens would raise that to a visible power. λ = e^(r)(1 + δ) with
    // r the rounded exponent; logf of λ is good to a rounding of the logarithm, so δ is taken from a double
    const double exact = exp(-double(rate));
    drift = lambda > 0.0f && exact < 1e300 ? float(exact / double(lambda) - 1.0) : 0.0f;
    const float room = 40.0f - fabsf(extra);
    tile = room >= fabsf(rate) * kTokens ? kTokens : 1;
    // also 1 for NaN
    if (tile == 1 && room >= 2.0f * fabsf(rate)) tile = int(room / fabsf(rate));
  }
};

// One tile as the scan sees it, in arrays of a thread: E, the values (second: 1 where null), and M.
struct ScanTile {
  const float* weight;
  const float* first;
  const float* second;
  float maximum;
  int tokens, stride;

  SOLA_DEVICE float values(int i, int p) const {
    return i == 0 ? first[p * stride] : second ? second[p * stride] : 1.0f;
  }
};

enum class Direction { left_to_right, right_to_left };

// Moves a state across a tile, calling visit(p, values) at every token with the sums over the tokens before it, in the
// reference of reference_in_tile.
template <Direction direction, int K, class Visit>
SOLA_DEVICE void scan_tile(const ScanTile& tile, const Channel& channel, Scan<K>& scan, const Visit& visit) {
  if (channel.tile == 1) {
    visit(0, scan.value);
    scan.move(1.0f, channel.decay);
    scan.refer_to(larger(scan.m, tile.maximum));
    const float weight = tile.weight[0] * expf(tile.maximum - scan.m);
    scan.value[0] = fmaf(weight, tile.values(0, 0), scan.value[0]);
    scan.value[1] = fmaf(weight, tile.values(1, 0), scan.value[1]);
    scan.gauge += weight;
    return;
  }
  scan.refer_to(larger(scan.m, tile.maximum));
  // half of what λ lacks over the tile before it and half behind it, so that tokens inside are right on average
  const float half_drift = channel.drift * (0.5f * float(tile.tokens));
  scan.grow(half_drift);
  const float share = expf(tile.maximum - scan.m);
  float shrink = 1.0f;
  for (int step = 0; step < tile.tokens; ++step) {
    const int p = direction == Direction::left_to_right ? step : tile.tokens - 1 - step;
    visit(p, scan.value);
    const float weight = tile.weight[p * tile.stride] * share;
    if constexpr (K == 4) {
      scan.value[2] = channel.lambda * (scan.value[2] + scan.value[0]);
      scan.value[3] = channel.lambda * (scan.value[3] + scan.value[1]);
    }
    scan.value[0] = fmaf(channel.lambda, scan.value[0], weight * tile.values(0, p));
    scan.value[1] = fmaf(channel.lambda, scan.value[1], weight * tile.values(1, p));
    shrink *= channel.lambda;
  }
  scan.grow(half_drift);
  scan.gauge = fmaf(scan.gauge, shrink, share);
  scan.keep_in_range();
}

// the reference of the sums that scan_tile shows its visitor
template <int K>
SOLA_DEVICE float reference_in_tile(const Scan<K>& entering, const Channel& channel, float maximum) {
  return channel.tile == 1 ? entering.m : larger(entering.m, maximum);
}

constexpr int kWkvThreads = 64;  // channels of a block

// a block's batch, stretch and channel; `exists` is false beyond the last channel
struct WkvPlace {
  int64_t batch, stretch, channel, begin;
  int tokens;
  bool exists;
};

template <int kTokens>
SOLA_DEVICE WkvPlace wkv_place(const WkvParams& p) {
  const int64_t blocks = (p.C + kWkvThreads - 1) / kWkvThreads, row = blockIdx.x / blocks;
  const int64_t channel = blockIdx.x % blocks * kWkvThreads + threadIdx.x, stretch = row % p.stretches;
  const int64_t begin = stretch * kTokens;
  return {row / p.stretches, stretch, channel, begin, int(min(int64_t(kTokens), p.N - begin)), channel < p.C};
}

template <int kTokens>
SOLA_DEVICE Channel load_channel(const WkvParams& p, int64_t channel) {
  Channel loaded;
  loaded.load<kTokens>(static_cast<const float*>(p.decay)[channel], static_cast<const float*>(p.bonus)[channel]);
  return loaded;
}

// one number per token for every thread of the block; neighbours in memory belong to neighbouring threads
template <int kTokens>
struct Column {
  float* data;

  SOLA_DEVICE explicit Column(int index)
      : data(reinterpret_cast<float*>(shared_memory()) + index * kTokens * kWkvThreads + threadIdx.x) {}
  SOLA_DEVICE float& operator[](int p) const { return data[p * kWkvThreads]; }

  // f(number) of the tokens of a stretch, from a tensor
  template <class In, class F>
  SOLA_DEVICE void load(const In* from, int64_t stride, int tokens, const F& f) const {
#pragma unroll 8
    for (int p = 0; p < tokens; ++p) (*this)[p] = f(to_float(from[p * stride]));
  }
};

// log-weights of a stretch to E = e^(x − M), tile by tile; M at the place of each tile's first token in `maxima`
template <int kTokens>
SOLA_DEVICE void exponentiate(Column<kTokens> x, Column<kTokens> maxima, int tokens, int tile) {
  for (int first = 0; first < tokens; first += tile) {
    const int end = min(first + tile, tokens);
    float best = kEmpty;
    for (int p = first; p < end; ++p) best = larger(x[p], best);
    maxima[first] = best;
    for (int p = first; p < end; ++p) x[p] = expf(x[p] - best);
  }
}

// the tiles of a stretch in one direction: f(first token, tokens)
template <Direction direction, class F>
SOLA_DEVICE void for_tiles(int tokens, int tile, const F& f) {
  const int last = (tokens - 1) / tile * tile;
  for (int step = 0; step <= last; step += tile) {
    const int first = direction == Direction::left_to_right ? step : last - step;
    f(first, min(tile, tokens - first));
  }
}

// K values, gauge and reference of a scan, C apart
template <int K>
SOLA_DEVICE Scan<K> load_scan(const float* from, int64_t C) {
  Scan<K> scan;
#pragma unroll
  for (int i = 0; i < K; ++i) scan.value[i] = from[i * C];
  scan.gauge = from[K * C];
  scan.m = from[(K + 1) * C];
  return scan;
}
template <int K>
SOLA_DEVICE void store_scan(const Scan<K>& scan, float* to, int64_t C) {
#pragma unroll
  for (int i = 0; i < K; ++i) to[i * C] = scan.value[i];
  to[K * C] = scan.gauge;
  to[(K + 1) * C] = scan.m;
}

// where a state of a stretch (or a group) and side begins, at one channel
SOLA_DEVICE float* state_at(float* states, int64_t index, int side, int numbers, const WkvParams& p, int64_t channel) {
  return states + (index * 2 + side) * numbers * p.C + channel;
}

}  // namespace sola::cuda
