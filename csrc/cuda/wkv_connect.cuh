// from what stretches sum up by themselves to what enters each of them, in three steps so that long sequences have
// parallel work: totals of groups of stretches, a walk over the groups, a walk inside every group
#pragma once

#include "cuda/launch.h"
#include "cuda/wkv.cuh"

namespace sola::cuda {

enum class Step { totals, groups, stretches };

constexpr int kConnectThreads = 64;  // channels of a block

template <class State, int kTokens, Step step>
__global__ void __launch_bounds__(kConnectThreads, 1) connect(WkvWork work) {
  const WkvParams& p = work.op;
  const int64_t blocks = (p.C + kConnectThreads - 1) / kConnectThreads,
                channel = blockIdx.x % blocks * kConnectThreads + threadIdx.x;
  if (channel >= p.C) return;
  // (batch, group, side), or (batch, side) for the walk over groups
  int64_t index = blockIdx.x / blocks;
  const int side = int(index % 2);
  index /= 2;
  const int64_t groups = step == Step::groups ? 1 : work.groups, batch = index / groups, group = index % groups;
  const bool over_groups = step == Step::groups;
  const int64_t all = over_groups ? work.groups : p.stretches, row = batch * all;
  const int64_t begin = over_groups ? 0 : group * kWkvGroup, end = over_groups ? all : min(begin + kWkvGroup, all);
  const int64_t tokens = over_groups ? int64_t(kTokens) * kWkvGroup : kTokens;
  const float decay = static_cast<const float*>(p.decay)[channel];
  float* states = over_groups ? work.totals : work.states;

  State sum;
  float* total =
      work.groups > 1 ? state_at(work.totals, batch * work.groups + group, side, State::kNumbers, p, channel) : nullptr;
  if (step == Step::stretches && total) sum.load(total, p.C);
  for (int64_t i = 0; i < end - begin; ++i) {
    const int64_t s = side == 0 ? begin + i : end - 1 - i;
    float* at = state_at(states, row + s, side, State::kNumbers, p, channel);
    State own;
    own.load(at, p.C);
    if (step != Step::totals) sum.store(at, p.C);
    sum.follow(own, float(min(tokens, p.N - s * tokens)), decay);
  }
  if (step == Step::totals) sum.store(total, p.C);
}

template <class State, int kTokens>
int launch_connect(const WkvWork& work, void* stream) {
  const WkvParams& p = work.op;
  const int64_t blocks = p.B * 2 * ((p.C + kConnectThreads - 1) / kConnectThreads);
  int error = cudaSuccess;
  if (work.groups > 1) {
    error = launch(connect<State, kTokens, Step::totals>, blocks * work.groups, kConnectThreads, 0, stream, work);
    if (error == cudaSuccess)
      error = launch(connect<State, kTokens, Step::groups>, blocks, kConnectThreads, 0, stream, work);
  }
  if (error == cudaSuccess)
    error = launch(connect<State, kTokens, Step::stretches>, blocks * work.groups, kConnectThreads, 0, stream, work);
  return error;
}

// Σ of each stretch by itself, with Tokens::load<In> for what a lane has
template <class Tokens, class In>
__global__ void __launch_bounds__(kWkvThreads, 2) gather(WkvWork work) {
  const typename Tokens::Place at(work.op);
  const Channel channel = at.channel_of(work.op);
  Tokens tokens;
  tokens.template load<In>(work, at, channel);
  share_tokens(tokens, channel).leave(at, work, channel.decay);
}

// what enters stretches, where there are several, and then `kernel` over all of them, with `arrays` numbers per token
// behind the states
template <class Tokens, class In>
int launch_scans(void (*kernel)(WkvWork), int arrays, const WkvWork& work, void* stream) {
  using State = typename Tokens::State;
  constexpr int kTokens = Tokens::kTokens;
  const int64_t blocks = work.op.B * work.op.stretches * wkv_channel_blocks(work.op.C);
  constexpr size_t states = WarpStates<State>::kBytes;
  int error = cudaSuccess;
  if (work.op.stretches > 1) {
    error = launch(gather<Tokens, In>, blocks, kWkvThreads, states, stream, work);
    if (error == cudaSuccess) error = launch_connect<State, kTokens * kWkvWarps>(work, stream);
  }
  return error ? error
               : launch(kernel, blocks, kWkvThreads, states + arrays * PerToken<State, kTokens>::kBytes, stream, work);
}

}  // namespace sola::cuda
