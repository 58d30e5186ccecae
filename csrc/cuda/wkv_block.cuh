// bidirectional WKV: a block's tokens, and the states of its warps in shared memory
#pragma once

#include "cuda/wkv.cuh"

namespace sola::cuda {

// The second kernel of a call begins where the first ended, with what the L2 cache still holds.
SOLA_DEVICE unsigned block_from_end() { return gridDim.x - 1 - blockIdx.x; }

// T: tokens of a lane
template <int T>
struct WkvPlace {
  static constexpr int kTokens = T, kStretch = T * kWkvWarps;
  int64_t batch, stretch, channel, begin;
  int tokens;   // of this lane
  bool exists;  // false beyond the last channel

  SOLA_DEVICE WkvPlace(const WkvWork& work, unsigned block) {
    const WkvParams& p = work.op;
    // a grid has less than 2³¹ blocks, and so have its parts
    const unsigned row = short_quotient(block, work.channel_blocks), image = short_quotient(row, work.stretches);
    channel = (block - row * unsigned(work.channel_blocks.by)) * kWarp + lane_of();
    exists = channel < p.C;
    batch = image;
    stretch = row - image * unsigned(work.stretches.by);
    begin = stretch * kStretch + warp_of() * T;
    tokens = exists ? int(max(int64_t(0), min(int64_t(T), p.N - begin))) : 0;
  }

  // the first token in a plane (B, N, C)
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

// a block's states in shared memory: by side, warp, number, lane; behind them what its warps know together
template <class State>
struct WarpStates {
  static constexpr int kScans = State::kNumbers / Scan::kNumbers, kNumbers = State::kNumbers * kWarp;
  static constexpr size_t kStateBytes = sizeof(float) * 2 * kWkvWarps * kNumbers;
  static constexpr size_t kBytes = kStateBytes + sizeof(float) * (kScans * kWkvThreads + Channel::kNumbers * kWarp);

  SOLA_DEVICE float* at(int side, int warp) const {
    return reinterpret_cast<float*>(shared_memory()) + (side * kWkvWarps + warp) * kNumbers + lane_of();
  }
  SOLA_DEVICE float* channel() const { return reinterpret_cast<float*>(shared_memory() + kStateBytes) + lane_of(); }
  SOLA_DEVICE float* maximum(int scan, int warp) const {
    return channel() + (Channel::kNumbers + scan * kWkvWarps + warp) * kWarp;
  }
  SOLA_DEVICE State own(int side) const {
    State state;
    state.load(at(side, warp_of()), kWarp);
    return state;
  }
  // The block's channels, which one warp works out, and the largest log-weights of its tokens in the place of a lane's.
  template <class Place>
  SOLA_DEVICE Channel meet(const Place& place, const WkvParams& p, float (&maxima)[kScans]) const {
    if (warp_of() == 0) place.channel_of(p).store(channel());
    for (int scan = 0; scan < kScans; ++scan) *maximum(scan, warp_of()) = maxima[scan];
    sync_block();
    const Channel found(channel());
    if (found.share != Share::block) return found;
#pragma unroll
    for (int i = 0; i < kScans * kWkvWarps; ++i) {
      float& best = maxima[i / kWkvWarps];
      best = larger(best, *maximum(0, i));
    }
    return found;
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
  SOLA_DEVICE State fold(State sum, const Place& place, const WkvWork& work, const Channel& channel, bool keep) const {
    constexpr int T = Place::kTokens;
    const int side = warp_of();
    const int64_t begin = place.stretch * Place::kStretch;
#pragma unroll 1
    for (int i = 0; i < kWkvWarps; ++i) {
      const int warp = side == 0 ? i : kWkvWarps - 1 - i;
      State own;
      own.load(at(side, warp), kWarp);
      if (keep) sum.store(at(side, warp), kWarp);
      const int64_t tokens = max(int64_t(0), min(int64_t(T), work.op.N - begin - warp * T));
      sum.follow(own, float(tokens) * channel.decay);
    }
    return sum;
  }
  // The same where all tokens share a maximum and `sum` is not above it by much: nothing is compared on the way.
  SOLA_DEVICE State fold_shared(State sum, const Channel& channel, bool keep) const {
    const int side = warp_of(), step = side == 0 ? kNumbers : -kNumbers;
    float* numbers = at(side, side == 0 ? 0 : kWkvWarps - 1);
    State own;
    own.load(numbers, kWarp);
    sum.refer_to(own);
#pragma unroll
    for (int i = 0; i < kWkvWarps; ++i, numbers += step) {
      if (i > 0) own.load(numbers, kWarp);
      // gauge and reference are there already
      if (keep) sum.store_sums(numbers, kWarp);
      sum.follow_near(own, channel.fade);
    }
    return sum;
  }
  template <class Place>
  SOLA_DEVICE State fold_either(const State& sum, const Place& place, const WkvWork& work, const Channel& channel,
                                bool keep) const {
    State own;
    own.load(at(warp_of(), 0), kWarp);
    return channel.share == Share::block && !sum.outweighs(own) ? fold_shared(sum, channel, keep)
                                                                : fold(sum, place, work, channel, keep);
  }
  // from own sums to what enters each warp
  template <class Place>
  SOLA_DEVICE void enter(const Place& place, const WkvWork& work, const Channel& channel) const {
    if (warp_of() < 2) {
      State entering;
      if (work.op.stretches > 1 && place.exists)
        entering.load(state_at(work.states, place.batch * work.op.stretches + place.stretch, warp_of(), State::kNumbers,
                               work.op, place.channel),
                      work.op.C);
      fold_either(entering, place, work, channel, true);
    }
    sync_block();
  }
  // a stretch's sums to global memory
  template <class Place>
  SOLA_DEVICE void leave(const Place& place, const WkvWork& work, const Channel& channel) const {
    if (warp_of() >= 2) return;
    const State sum = fold_either(State{}, place, work, channel, false);
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

// Tokens as weights, and what every warp's sum up by themselves in shared memory.
template <class Tokens>
SOLA_DEVICE Channel share_tokens(Tokens& tokens, const typename Tokens::Place& at, const WkvWork& work) {
  const WarpStates<typename Tokens::State> states;
  const Channel channel = states.meet(at, work.op, tokens.maxima);
  tokens.weigh(channel);
  states.share(tokens.template sum<Direction::left_to_right>(channel),
               tokens.template sum<Direction::right_to_left>(channel));
  return channel;
}

// What enters them from either side. Their channel is to be read again, so that it needs no registers meanwhile.
template <class Tokens>
SOLA_DEVICE WarpStates<typename Tokens::State> enter_tokens(Tokens& tokens, const typename Tokens::Place& at,
                                                            const WkvWork& work) {
  const Channel channel = share_tokens(tokens, at, work);
  wait_for_results();
  const WarpStates<typename Tokens::State> states;
  states.enter(at, work, channel);
  return states;
}

}  // namespace sola::cuda
