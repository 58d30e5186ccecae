// bidirectional WKV: the decaying scan that forward and backward share
//
// A scan sums values under weights e^(x_i − decay·distance), x_i a log-weight per token and channel. A lane has a
// channel and a few tokens, in registers: with M the largest x of these and E_i = e^(x_i − M), the sums among them need
// one exponential per token and multiplications by λ = e^−decay; a state (values, m), standing for values · e^m,
// carries them on. The warps of a block have neighbouring tokens of the same channels, a stretch together.
//
// Nothing that counts is lost as long as |decay|·T + |bonus| ≤ 40 for a lane's T tokens: a token whose E underflows
// (e^−86) is outweighed at every place that it reaches by the token that holds the maximum, by e^46 at least. A channel
// whose decay or bonus is too large for that takes tokens one by one, with the decay in m.
#pragma once

#include <type_traits>

#include "cuda/kernel_params.h"
#include "cuda/tile.cuh"

namespace sola::cuda {

// the log-weight of an empty state: finite, so that differences never turn into Inf − Inf
constexpr float kEmpty = -1e30f;

// 1 for NaN, so that it goes on
SOLA_DEVICE float larger(float a, float b) { return a > b || a != a ? a : b; }

// The sums of two values over the tokens on one side. `gauge` is a positive number of the size of the summed weights,
// to keep the values in range.
struct Scan {
  static constexpr int kNumbers = 4;
  float first = 0.0f, second = 0.0f, gauge = 0.0f, m = kEmpty;

  SOLA_DEVICE void rescale(float factor) {
    first *= factor;
    second *= factor;
    gauge *= factor;
  }
  // factors that underflow stand for sums that no longer count
  SOLA_DEVICE void refer_to(float reference) {
    rescale(expf(m - reference));
    m = reference;
  }
  // a factor of 1 + x for a tiny x
  SOLA_DEVICE void grow(float x) {
    first = fmaf(first, x, first);
    second = fmaf(second, x, second);
  }
  // in range nothing happens, so nothing is rounded
  SOLA_DEVICE void keep_in_range() {
    if (gauge > 0x1p30f || (gauge < 0x1p-30f && gauge > 0.0f)) {
      m += logf(gauge);
      rescale(1.0f / gauge);
    }
  }
  // what lies `tokens` further on, beside which other sums are
  SOLA_DEVICE void follow(Scan other, float tokens, float decay) {
    m -= tokens * decay;
    const float reference = larger(m, other.m);
    refer_to(reference);
    other.refer_to(reference);
    first += other.first;
    second += other.second;
    gauge += other.gauge;
    keep_in_range();
  }
  SOLA_DEVICE void load(const float* from, int64_t stride) {
    first = from[0];
    second = from[stride];
    gauge = from[2 * stride];
    m = from[3 * stride];
  }
  SOLA_DEVICE void store(float* to, int64_t stride) const {
    to[0] = first;
    to[stride] = second;
    to[2 * stride] = gauge;
    to[3 * stride] = m;
  }
};

// two scans that are carried together
struct TwoScans {
  static constexpr int kNumbers = 2 * Scan::kNumbers;
  Scan keys, grads;

  SOLA_DEVICE void load(const float* from, int64_t stride) {
    keys.load(from, stride);
    grads.load(from + Scan::kNumbers * stride, stride);
  }
  SOLA_DEVICE void store(float* to, int64_t stride) const {
    keys.store(to, stride);
    grads.store(to + Scan::kNumbers * stride, stride);
  }
  SOLA_DEVICE void follow(const TwoScans& other, float tokens, float decay) {
    keys.follow(other.keys, tokens, decay);
    grads.follow(other.grads, tokens, decay);
  }
};

// what the scan needs to know about a channel; `one_by_one`: its tokens can't share a maximum
struct Channel {
  float decay, bonus, lambda, drift;
  bool one_by_one;

  SOLA_DEVICE Channel(float rate, float extra, int tokens) : decay(rate), bonus(extra), lambda(expf(-rate)) {
    // −decay − log λ: λ is rounded, and thousands of tokens would raise that to a visible power. λ = e^(r)(1 + δ) with
    // r the rounded exponent; logf of λ is good to a rounding of the logarithm, so δ is taken from a double
    const double exact = exp(-double(rate));
    drift = lambda > 0.0f && exact < 1e300 ? float(exact / double(lambda) - 1.0) : 0.0f;
    // also for NaN
    one_by_one = !(40.0f - fabsf(extra) >= fabsf(rate) * float(tokens));
  }
};

// Log-weights of a lane's tokens to E = e^(x − M), 0 where there is no token; returns M. One by one they stay as they
// are.
template <int T>
SOLA_DEVICE float exponentiate(float (&x)[T], int tokens, const Channel& channel) {
  float best = kEmpty;
#pragma unroll
  for (int p = 0; p < T; ++p) {
    if (p < tokens) best = larger(x[p], best);
  }
#pragma unroll
  for (int p = 0; p < T; ++p) {
    const float weight = channel.one_by_one ? x[p] : expf(x[p] - best);
    x[p] = p < tokens ? weight : channel.one_by_one ? kEmpty : 0.0f;
  }
  return best;
}

enum class Direction { left_to_right, right_to_left };

// second values of a scan that counts weights
struct Ones {
  SOLA_DEVICE float operator[](int) const { return 1.0f; }
};

// Moves a state across a lane's tokens, calling visit(together, p, first, second, reference) at every one with the sums
// over the tokens before it, values · e^reference. `together` is a bool_constant: with true, weights are E and all
// references the same; with false, they are log-weights.
template <Direction direction, int T, class First, class Second, class Visit>
SOLA_DEVICE void scan_tokens(const float (&weights)[T], float maximum, const First& first, const Second& second,
                             const Channel& channel, Scan& scan, const Visit& visit) {
  const auto place = [](int step) { return direction == Direction::left_to_right ? step : T - 1 - step; };
  if (channel.one_by_one) {
#pragma unroll
    for (int step = 0; step < T; ++step) {
      const int p = place(step);
      visit(std::false_type{}, p, scan.first, scan.second, scan.m);
      scan.m -= channel.decay;
      scan.refer_to(larger(scan.m, weights[p]));
      const float weight = expf(weights[p] - scan.m);
      scan.first = fmaf(weight, first[p], scan.first);
      scan.second = fmaf(weight, second[p], scan.second);
      scan.gauge += weight;
    }
    return;
  }
  scan.refer_to(larger(scan.m, maximum));
  // half of what λ lacks over the tokens before them and half behind, so that those inside are right on average
  const float half_drift = channel.drift * (0.5f * float(T)), share = expf(maximum - scan.m);
  scan.grow(half_drift);
  float shrink = 1.0f;
#pragma unroll
  for (int step = 0; step < T; ++step) {
    const int p = place(step);
    visit(std::true_type{}, p, scan.first, scan.second, scan.m);
    const float weight = weights[p] * share;
    scan.first = fmaf(channel.lambda, scan.first, weight * first[p]);
    scan.second = fmaf(channel.lambda, scan.second, weight * second[p]);
    shrink *= channel.lambda;
  }
  scan.grow(half_drift);
  scan.gauge = fmaf(scan.gauge, shrink, share);
  scan.keep_in_range();
}

template <Direction direction, int T, class First, class Second>
SOLA_DEVICE Scan sum_tokens(const float (&weights)[T], float maximum, const First& first, const Second& second,
                            const Channel& channel) {
  Scan scan;
  scan_tokens<direction>(weights, maximum, first, second, channel, scan, [](auto, int, float, float, float) {});
  return scan;
}

constexpr int kWkvThreads = kWkvWarps * kWarp;
static_assert(kWkvChannels == kWarp);

// The second kernel of a call begins where the first ended, with what the L2 cache still holds.
SOLA_DEVICE unsigned block_from_end() { return gridDim.x - 1 - blockIdx.x; }

// T: tokens of a lane
template <int T>
struct WkvPlace {
  static constexpr int kStretch = T * kWkvWarps;
  int64_t batch, stretch, channel, begin;
  int tokens;   // of this lane
  bool exists;  // false beyond the last channel

  SOLA_DEVICE WkvPlace(const WkvParams& p, unsigned block) {
    const int64_t blocks = (p.C + kWarp - 1) / kWarp, row = block / blocks;
    channel = block % blocks * kWarp + lane_of();
    exists = channel < p.C;
    batch = row / p.stretches;
    stretch = row % p.stretches;
    begin = stretch * kStretch + warp_of() * T;
    tokens = exists ? int(max(int64_t(0), min(int64_t(T), p.N - begin))) : 0;
  }

  // the first token of a plane (B, N, row)
  SOLA_DEVICE int64_t in_plane(const WkvWork& work) const { return (batch * work.op.N + begin) * work.op.C + channel; }

  // a lane's numbers, 0 where there is none
  template <class In>
  SOLA_DEVICE void load(const View& view, float (&to)[T]) const {
    load(row_of<const In>(view, batch, begin, 0) + channel, view.token, to);
  }
  template <class In>
  SOLA_DEVICE void load(const In* from, int64_t stride, float (&to)[T]) const {
#pragma unroll
    for (int p = 0; p < T; ++p) to[p] = p < tokens ? to_float(from[p * stride]) : 0.0f;
  }
  SOLA_DEVICE Channel channel_of(const WkvParams& p) const {
    return exists ? Channel(static_cast<const float*>(p.decay)[channel], static_cast<const float*>(p.bonus)[channel], T)
                  : Channel(0.0f, 0.0f, T);
  }
};

// where a state of a stretch and side begins, at one channel
SOLA_DEVICE float* state_at(float* states, int64_t index, int side, int numbers, const WkvParams& p, int64_t channel) {
  return states + (index * 2 + side) * numbers * p.C + channel;
}

// a block's states in shared memory: by side, warp, number, lane
template <class State>
struct WarpStates {
  static constexpr size_t kBytes = sizeof(float) * 2 * kWkvWarps * State::kNumbers * kWarp;

  SOLA_DEVICE float* at(int side, int warp) const {
    return reinterpret_cast<float*>(shared_memory()) + (side * kWkvWarps + warp) * State::kNumbers * kWarp + lane_of();
  }
  SOLA_DEVICE State own(int side) const {
    State state;
    state.load(at(side, warp_of()), kWarp);
    return state;
  }
  // what every warp's tokens sum up by themselves
  SOLA_DEVICE void share(const State& left, const State& right) const {
    left.store(at(0, warp_of()), kWarp);
    right.store(at(1, warp_of()), kWarp);
    sync_block();
  }
  // One warp to a side adds them up in their order, starting with what enters the stretch; with `keep` it leaves what
  // enters every warp in the place of its own sums.
  template <class Place>
  SOLA_DEVICE State fold(State sum, const Place& place, const WkvWork& work, float decay, bool keep) const {
    constexpr int T = Place::kStretch / kWkvWarps;
    const int side = warp_of();
    const int64_t begin = place.stretch * Place::kStretch;
#pragma unroll 1
    for (int i = 0; i < kWkvWarps; ++i) {
      const int warp = side == 0 ? i : kWkvWarps - 1 - i;
      State own;
      own.load(at(side, warp), kWarp);
      if (keep) sum.store(at(side, warp), kWarp);
      const int64_t tokens = max(int64_t(0), min(int64_t(T), work.op.N - begin - warp * T));
      sum.follow(own, float(tokens), decay);
    }
    return sum;
  }
  // from own sums to what enters each warp
  template <class Place>
  SOLA_DEVICE void enter(const Place& place, const WkvWork& work, float decay) const {
    if (warp_of() < 2) {
      State entering;
      if (work.op.stretches > 1 && place.exists)
        entering.load(state_at(work.states, place.batch * work.op.stretches + place.stretch, warp_of(), State::kNumbers,
                               work.op, place.channel),
                      work.op.C);
      fold(entering, place, work, decay, true);
    }
    sync_block();
  }
  // a stretch's sums to global memory
  template <class Place>
  SOLA_DEVICE void leave(const Place& place, const WkvWork& work, float decay) const {
    if (warp_of() >= 2) return;
    const State sum = fold(State{}, place, work, decay, false);
    if (place.exists)
      sum.store(state_at(work.states, place.batch * work.op.stretches + place.stretch, warp_of(), State::kNumbers,
                         work.op, place.channel),
                work.op.C);
  }
};

// a number for every token of a lane, in shared memory behind the states
template <class State, int T>
struct PerToken {
  static constexpr size_t kBytes = sizeof(float) * T * kWkvThreads;
  float* data;

  SOLA_DEVICE explicit PerToken(int index)
      : data(reinterpret_cast<float*>(shared_memory() + WarpStates<State>::kBytes) + index * T * kWkvThreads +
             threadIdx.x) {}
  SOLA_DEVICE float& operator[](int p) const { return data[p * kWkvThreads]; }
};

// where sums of a lane's tokens are kept
template <int T>
struct InRegisters {
  float first[T], second[T];
  SOLA_DEVICE explicit InRegisters(int) {}
};
template <class State, int T>
struct InSharedMemory {
  PerToken<State, T> first, second;
  SOLA_DEVICE explicit InSharedMemory(int index) : first(index), second(index + 1) {}
};

// Sums over the tokens on one side of every token of a lane, and what they are relative to: one reference together, or
// one for each token. `index`: the first of its arrays in shared memory.
template <class State, int T, class Where = InRegisters<T>>
struct KeptSums : Where {
  using Where::first, Where::second;
  float reference = 0.0f;
  PerToken<State, T> references;

  SOLA_DEVICE explicit KeptSums(int index) : Where(index + 1), references(index) {}
  // visitor of a scan
  SOLA_DEVICE auto keep() {
    return [this](auto together, int i, float a, float b, float relative_to) {
      first[i] = a;
      second[i] = b;
      if constexpr (together.value) {
        reference = relative_to;
      } else {
        references[i] = relative_to;
      }
    };
  }
  template <class Together>
  SOLA_DEVICE float reference_of(Together, int i) const {
    if constexpr (Together::value) {
      return reference;
    } else {
      return references[i];
    }
  }
};

// what every warp's tokens sum up by themselves, in shared memory
template <class Tokens>
SOLA_DEVICE WarpStates<typename Tokens::State> share_tokens(const Tokens& tokens, const Channel& channel) {
  const WarpStates<typename Tokens::State> states;
  states.share(tokens.template sum<Direction::left_to_right>(channel),
               tokens.template sum<Direction::right_to_left>(channel));
  return states;
}

// what enters them from either side
template <class Tokens>
SOLA_DEVICE WarpStates<typename Tokens::State> enter_tokens(const Tokens& tokens, const typename Tokens::Place& at,
                                                            const WkvWork& work, const Channel& channel) {
  const auto states = share_tokens(tokens, channel);
  states.enter(at, work, channel.decay);
  return states;
}

}  // namespace sola::cuda
