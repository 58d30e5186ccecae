// from what stretches sum up by themselves to what enters each of them
//
// A block has all stretches of 32 channels, one side and one scan, a warp a run of neighbouring ones: it adds these up,
// takes what the runs before it come to, and walks over its own again. Several scans are on their way at once, so that
// few steps wait for memory, or for each other.
#pragma once

#include "cuda/launch.h"
#include "cuda/wkv_block.cuh"

namespace sola::cuda {

constexpr int kConnectWarps = 16;
// scans that are on their way together
constexpr int kAhead = 8;

// Adds the first `count` scans to `sum` in their order, `faded` from one to the next, and leaves in their places what
// preceded each. First come the references, then the factors, none of which waits for another, then the sums.
SOLA_DEVICE void follow_all(Scan& sum, Scan (&others)[kAhead], int count, float faded) {
  float before[kAhead], own[kAhead], references[kAhead];
  float m = sum.m;
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    const float left = i < count ? m - faded : m;
    m = larger(left, others[i].m);
    before[i] = expf(left - m);
    own[i] = expf(others[i].m - m);
    references[i] = m;
  }
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    const Scan other = others[i];
    others[i] = sum;
    sum.first = fmaf(sum.first, before[i], other.first * own[i]);
    sum.second = fmaf(sum.second, before[i], other.second * own[i]);
    sum.gauge = fmaf(sum.gauge, before[i], other.gauge * own[i]);
    sum.m = references[i];
  }
  sum.keep_in_range();
}

// Adds scans [begin, end) to `sum`, which lie where place(i) says; f(place(i), sum) sees what precedes each.
template <class Place, class F>
SOLA_DEVICE void follow_run(Scan& sum, int64_t begin, int64_t end, const Place& place, int64_t stride, float faded,
                            const F& f) {
  for (int64_t first = begin; first < end; first += kAhead) {
    const int count = int(min(int64_t(kAhead), end - first));
    Scan others[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (i < count) others[i].load(place(first + i), stride);
    }
    follow_all(sum, others, count, faded);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (i < count) f(place(first + i), others[i]);
    }
  }
}

template <int kScans, int kTokens>
__global__ void __launch_bounds__(kConnectWarps* kWarp, 1) connect(WkvWork work) {
  let_next_start();
  wait_for_results();
  const WkvParams& p = work.op;
  const unsigned index = short_quotient(blockIdx.x, work.channel_blocks);
  const int64_t channel = (blockIdx.x - index * unsigned(work.channel_blocks.by)) * kWkvChannels + lane_of();
  const int scan = int(index % kScans), side = int(index / kScans % 2), warps = int(blockDim.x) / kWarp;
  const int64_t batch = index / (2 * kScans), per_warp = (p.stretches + warps - 1) / warps;
  const bool exists = channel < p.C;

  const float faded = exists ? static_cast<const float*>(p.decay)[channel] * float(kTokens) : 0.0f;
  constexpr int kNumbers = kScans * Scan::kNumbers;
  float* scans = state_at(work.states, batch * p.stretches, side, kNumbers, p, channel) + scan * Scan::kNumbers * p.C;
  // stretches in the order in which a side's states go through them
  const auto place = [&](int64_t i) { return scans + (side == 0 ? i : p.stretches - 1 - i) * 2 * kNumbers * p.C; };
  const int64_t begin = min(p.stretches, warp_of() * per_warp);
  const int64_t end = exists ? min(p.stretches, begin + per_warp) : begin;
  const auto nothing = [](float*, const Scan&) {};

  Scan total;
  follow_run(total, begin, end, place, p.C, faded, nothing);
  float* totals = reinterpret_cast<float*>(shared_memory()) + lane_of();
  const auto of_warp = [&](int64_t warp) { return totals + warp * Scan::kNumbers * kWarp; };
  total.store(of_warp(warp_of()), kWarp);
  sync_block();
  Scan entering;
  // a warp with fewer stretches has none behind it, and a stretch with fewer tokens nothing before or behind it
  follow_run(entering, 0, warp_of(), of_warp, kWarp, float(per_warp) * faded, nothing);
  follow_run(entering, begin, end, place, p.C, faded, [&](float* to, const Scan& sum) { sum.store(to, p.C); });
}

template <class State, int kTokens>
int launch_connect(const WkvWork& work, void* stream) {
  constexpr int kScans = State::kNumbers / Scan::kNumbers;
  const int64_t warps = min(int64_t(kConnectWarps), work.op.stretches);
  return launch(connect<kScans, kTokens>, work.op.B * 2 * kScans * work.channel_blocks.by, int(warps) * kWarp,
                sizeof(float) * Scan::kNumbers * kWarp * warps, stream, work, kEarly);
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
  const int64_t blocks = work.op.B * work.op.stretches * work.channel_blocks.by;
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
