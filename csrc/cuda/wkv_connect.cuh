// from what stretches sum up by themselves to what enters each of them
//
// A block has all stretches of 32 channels and one side, a warp a run of neighbouring ones: it adds these up, takes
// what the runs before it come to, and walks over its own again. Several states are on their way at once, so that few
// steps wait for memory, or for each other.
#pragma once

#include "cuda/launch.h"
#include "cuda/wkv.cuh"

namespace sola::cuda {

constexpr int kConnectWarps = 16;

// stretches [begin, end) in the order in which a side's states go through them
struct Run {
  int64_t begin, end, stretches, tokens;  // tokens of all stretches
  int per_stretch, side;

  SOLA_DEVICE int64_t stretch(int64_t i) const { return side == 0 ? i : stretches - 1 - i; }
  SOLA_DEVICE float tokens_of(int64_t first, int64_t last) const {
    const int64_t low = side == 0 ? first : stretches - last, high = side == 0 ? last : stretches - first;
    return float(min(high * per_stretch, tokens) - low * per_stretch);
  }
};

// f(i, state) for every stretch of a run in its order, with several of its states on their way
template <class State, class F>
SOLA_DEVICE void for_stretches(const Run& run, const float* states, int64_t row, int64_t channels, const F& f) {
  constexpr int kAhead = 32 / State::kNumbers;
  for (int64_t first = run.begin; first < run.end; first += kAhead) {
    State own[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i < run.end) own[i].load(states + run.stretch(first + i) * row, channels);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i < run.end) f(first + i, own[i]);
    }
  }
}

template <class State, int kTokens>
__global__ void __launch_bounds__(kConnectWarps* kWarp, 1) connect(WkvWork work) {
  let_next_start();
  wait_for_results();
  const WkvParams& p = work.op;
  const int64_t blocks = (p.C + kWkvChannels - 1) / kWkvChannels,
                channel = blockIdx.x % blocks * kWkvChannels + lane_of();
  const int64_t index = blockIdx.x / blocks, batch = index / 2;
  const bool exists = channel < p.C;
  const float decay = exists ? static_cast<const float*>(p.decay)[channel] : 0.0f;
  const int side = int(index % 2), warps = int(blockDim.x) / kWarp;
  const int64_t per_warp = (p.stretches + warps - 1) / warps;
  const auto run_of = [&](int warp) {
    const int64_t begin = min(p.stretches, warp * per_warp), end = min(p.stretches, begin + per_warp);
    return Run{begin, exists ? end : begin, p.stretches, p.N, kTokens, side};
  };
  const Run run = run_of(warp_of());
  const int64_t row = 2 * State::kNumbers * p.C;
  float* states = state_at(work.states, batch * p.stretches, side, State::kNumbers, p, channel);

  State total;
  for_stretches<State>(run, states, row, p.C,
                       [&](int64_t i, const State& own) { total.follow(own, run.tokens_of(i, i + 1), decay); });
  float* totals = reinterpret_cast<float*>(shared_memory()) + lane_of();
  total.store(totals + warp_of() * State::kNumbers * kWarp, kWarp);
  sync_block();
  State entering;
#pragma unroll 1
  for (int warp = 0; warp < warp_of(); ++warp) {
    const Run before = run_of(warp);
    total.load(totals + warp * State::kNumbers * kWarp, kWarp);
    entering.follow(total, before.tokens_of(before.begin, before.end), decay);
  }
  for_stretches<State>(run, states, row, p.C, [&](int64_t i, const State& own) {
    entering.store(states + run.stretch(i) * row, p.C);
    entering.follow(own, run.tokens_of(i, i + 1), decay);
  });
}

template <class State, int kTokens>
int launch_connect(const WkvWork& work, void* stream) {
  const int64_t warps = min(int64_t(kConnectWarps), work.op.stretches);
  return launch(connect<State, kTokens>, work.op.B * 2 * wkv_channel_blocks(work.op.C), int(warps) * kWarp,
                sizeof(float) * State::kNumbers * kWarp * warps, stream, work, kEarly);
}

// Σ of each stretch by itself, with Tokens::load<In> for what a lane has
template <class Tokens, class In>
__global__ void __launch_bounds__(kWkvThreads, 2) gather(WkvWork work) {
  let_next_start();
  const typename Tokens::Place at(work, blockIdx.x);
  const typename Tokens::template Raw<In> raw(work, at);
  Tokens tokens(raw, at);
  const Channel channel = share_tokens(tokens, at, work);
  WarpStates<typename Tokens::State>().leave(at, work, channel);
}

// what enters stretches, where there are several, and then `kernel` over all of them, with `arrays` numbers per token
// behind the states
template <class Tokens, class In>
int launch_scans(void (*kernel)(WkvWork), int arrays, const WkvWork& work, void* stream) {
  using State = typename Tokens::State;
  constexpr int kTokens = Tokens::kTokens;
  const int64_t blocks = work.op.B * work.op.stretches * wkv_channel_blocks(work.op.C);
  constexpr size_t states = WarpStates<State>::kBytes;
  const bool several = work.op.stretches > 1;
  int error = cudaSuccess;
  if (several) {
    error = launch(gather<Tokens, In>, blocks, kWkvThreads, states, stream, work);
    if (error == cudaSuccess) error = launch_connect<State, kTokens * kWkvWarps>(work, stream);
  }
  return error ? error
               : launch(kernel, blocks, kWkvThreads, states + arrays * PerToken<State, kTokens>::kBytes, stream, work,
                        Manner{0, several});
}

}  // namespace sola::cuda
