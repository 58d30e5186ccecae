// bidirectional WKV: the decaying scan that forward and backward share
//
// A scan sums values under weights e^(x_i − decay·distance), x_i a log-weight per token and channel. A lane has a
// channel and a few tokens, in registers: with M the largest x of these and E_i = e^(x_i − M), the sums among them need
// one exponential per token and multiplications by λ = e^−decay; a state (values, m), standing for values · e^m,
// carries them on. The warps of a block have neighbouring tokens of the same channels, a stretch together.
//
// Nothing that counts is lost as long as |decay|·T + |bonus| ≤ 32 for a lane's T tokens. A token whose E underflows
// (e^−86) is outweighed at every place that it reaches by the token that holds the maximum, by e^54 at least; a lane
// that underflows beside what enters it is so by e^16: m overstates that by what a lane forgets and by what
// keep_in_range leaves (e^32, e^6), and this lane forgets as much once more. A channel whose decay or bonus is too
// large for that takes tokens one by one, with the decay in m. So does one whose weights grow (a negative decay) by
// more than e^40 over the whole sequence: a key that far ones outweigh here may be the near one of a query there, and
// its gradient needs a reference of its own.
#pragma once

#include "cuda/kernel_params.h"
#include "cuda/tile.cuh"

namespace sola::cuda {

// the log-weight of an empty state: finite, so that differences never turn into Inf − Inf
constexpr float kEmpty = -1e30f;

// e^x, 0 below e^−87; as good as expf for weights of size 1, and one instruction with a product
SOLA_DEVICE float fast_exp(float x) { return fast_exp2(x * kLog2e); }

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
    if (gauge > 0x1p30f || (gauge < 0x1p-8f && gauge > 0.0f)) {
      m += logf(gauge);
      rescale(1.0f / gauge);
    }
  }
  // one token more, with its log-weight, where tokens can't share a maximum
  SOLA_DEVICE void add(float log_weight, float x, float y, float decay) {
    m -= decay;
    refer_to(larger(m, log_weight));
    const float weight = expf(log_weight - m);
    first = fmaf(weight, x, first);
    second = fmaf(weight, y, second);
    gauge += weight;
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
  float decay, bonus, lambda;
  // λ is rounded, and thousands of tokens would raise that to a visible power: −decay − log λ over half of a lane's
  // tokens, once before and once behind them, so that those inside are right on average. What logf errs by is a
  // rounding of the decay, which no distance makes visible: there the weight is less by more.
  float half_drift;
  bool one_by_one;

  // a lane's tokens, and those of the whole sequence
  SOLA_DEVICE Channel(float rate, float extra, int tokens, int64_t all)
      : decay(rate),
        bonus(extra),
        lambda(expf(-rate)),
        half_drift(0.5f * float(tokens) * (-rate - logf(lambda))),
        // also for NaN
        one_by_one(!(32.0f - fabsf(extra) >= fabsf(rate) * float(tokens) && rate * float(all) >= -40.0f)) {}
};

enum class Direction { left_to_right, right_to_left };

// f(p) for every token of a lane, in the order of a direction
template <Direction direction, int T, class F>
SOLA_DEVICE void for_tokens(const F& f) {
#pragma unroll
  for (int step = 0; step < T; ++step) f(direction == Direction::left_to_right ? step : T - 1 - step);
}

// second values of a scan that counts weights
struct Ones {
  SOLA_DEVICE float operator[](int) const { return 1.0f; }
};

// Log-weights of a lane's tokens to E = e^(x − M); returns M. One by one they stay as they are.
template <int T>
SOLA_DEVICE float exponentiate(float (&x)[T], const Channel& channel) {
  float best = kEmpty;
  if (channel.one_by_one) return best;
#pragma unroll
  for (int p = 0; p < T; ++p) best = larger(best, x[p]);
#pragma unroll
  for (int p = 0; p < T; ++p) x[p] = fast_exp(x[p] - best);
  return best;
}

// Moves sums by one token, of weight E.
SOLA_DEVICE void step(Scan& scan, const Channel& channel, float weight, float x, float y) {
  scan.first = fmaf(channel.lambda, scan.first, weight * x);
  scan.second = fmaf(channel.lambda, scan.second, weight * y);
}

// a state as it enters a lane's tokens
SOLA_DEVICE Scan entering(Scan scan, float reference, const Channel& channel) {
  scan.refer_to(reference);
  scan.grow(channel.half_drift);
  return scan;
}
SOLA_DEVICE TwoScans entering(const TwoScans& scans, float keys, float grads, const Channel& channel) {
  return {entering(scans.keys, keys, channel), entering(scans.grads, grads, channel)};
}

// what a lane's tokens sum up by themselves
template <Direction direction, int T, class First, class Second>
SOLA_DEVICE Scan sum_tokens(const float (&weights)[T], float maximum, const First& first, const Second& second,
                            const Channel& channel) {
  Scan scan;
  if (channel.one_by_one) {
    for_tokens<direction, T>([&](int p) { scan.add(weights[p], first[p], second[p], channel.decay); });
  } else {
    for_tokens<direction, T>([&](int p) { step(scan, channel, weights[p], first[p], second[p]); });
    scan.grow(channel.half_drift);
    scan.gauge = 1.0f;
    scan.m = maximum;
  }
  return scan;
}

// One reference for a lane's weights and what enters it from both sides with references of its own, the largest of them
// or not far below it, so that parts can be added as they are: mostly that of the weights.
template <int T>
SOLA_DEVICE float share_reference(float (&weights)[T], float maximum, float left, float right) {
  constexpr float kNear = 20.0f;
  const float outside = larger(left, right);
  if (!(outside > maximum + kNear)) return maximum;
  const float factor = fast_exp(maximum - outside);
#pragma unroll
  for (int p = 0; p < T; ++p) weights[p] *= factor;
  return outside;
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
    // a grid has less than 2³¹ blocks, and so have its parts
    const unsigned blocks = unsigned((p.C + kWarp - 1) / kWarp), stretches = unsigned(p.stretches),
                   row = block / blocks;
    channel = block % blocks * kWarp + lane_of();
    exists = channel < p.C;
    batch = row / stretches;
    stretch = row % stretches;
    begin = stretch * kStretch + warp_of() * T;
    tokens = exists ? int(max(int64_t(0), min(int64_t(T), p.N - begin))) : 0;
  }

  // the first token of a plane (B, N, row)
  SOLA_DEVICE int64_t in_plane(const WkvWork& work) const { return (batch * work.op.N + begin) * work.op.C + channel; }

  // a lane's numbers as they lie in memory; what is missing holds anything
  template <class In>
  SOLA_DEVICE void load(const View& view, In (&to)[T]) const {
    load(row_of<const In>(view, batch, begin, 0) + channel, view.token, to);
  }
  template <class In>
  SOLA_DEVICE void load(const In* from, int64_t stride, In (&to)[T]) const {
    if (tokens == T) {
#pragma unroll
      for (int p = 0; p < T; ++p, from += stride) to[p] = *from;
    } else {
#pragma unroll
      for (int p = 0; p < T; ++p, from += stride) to[p] = p < tokens ? *from : In{};
    }
  }
  // numbers out of them, `missing` where there is none
  template <class In>
  SOLA_DEVICE void convert(const In (&from)[T], float missing, float (&to)[T]) const {
#pragma unroll
    for (int p = 0; p < T; ++p) to[p] = to_float(from[p]);
    if (tokens == T) return;
#pragma unroll
    for (int p = 0; p < T; ++p)
      if (p >= tokens) to[p] = missing;
  }
  SOLA_DEVICE Channel channel_of(const WkvParams& p) const {
    return exists ? Channel(static_cast<const float*>(p.decay)[channel], static_cast<const float*>(p.bonus)[channel], T,
                            p.N)
                  : Channel(0.0f, 0.0f, T, 0);
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
  wait_for_results();
  states.enter(at, work, channel.decay);
  return states;
}

}  // namespace sola::cuda
