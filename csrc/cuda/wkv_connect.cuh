// from what stretches sum up by themselves to what enters each of them, in three steps so that long sequences have
// parallel work: totals of groups of stretches, a walk over the groups, a walk inside every group
#pragma once

#include "cuda/launch.h"
#include "cuda/wkv.cuh"

namespace sola::cuda {

enum class Step { totals, groups, stretches };

// one or two scans that are carried together
template <int... K>
struct Scans;
template <int K>
struct Scans<K> {
  static constexpr int kNumbers = K + 2;
  Scan<K> scan;
  SOLA_DEVICE void load(const float* from, int64_t C) { scan = load_scan<K>(from, C); }
  SOLA_DEVICE void store(float* to, int64_t C) const { store_scan(scan, to, C); }
  SOLA_DEVICE void follow(const Scans& other, float tokens, float decay) {
    scan.move(tokens, decay);
    scan.add(other.scan);
  }
};
template <int K, int L>
struct Scans<K, L> {
  static constexpr int kNumbers = K + L + 4;
  Scans<K> one;
  Scans<L> two;
  SOLA_DEVICE void load(const float* from, int64_t C) {
    one.load(from, C);
    two.load(from + (K + 2) * C, C);
  }
  SOLA_DEVICE void store(float* to, int64_t C) const {
    one.store(to, C);
    two.store(to + (K + 2) * C, C);
  }
  SOLA_DEVICE void follow(const Scans& other, float tokens, float decay) {
    one.follow(other.one, tokens, decay);
    two.follow(other.two, tokens, decay);
  }
};

template <class State, int kTokens, Step step>
__global__ void __launch_bounds__(kWkvThreads, 1) connect(WkvWork work) {
  const WkvParams& p = work.op;
  const int64_t blocks = (p.C + kWkvThreads - 1) / kWkvThreads,
                channel = blockIdx.x % blocks * kWkvThreads + threadIdx.x;
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
  const int64_t blocks = p.B * 2 * ((p.C + kWkvThreads - 1) / kWkvThreads);
  int error = cudaSuccess;
  if (work.groups > 1) {
    error = launch(connect<State, kTokens, Step::totals>, blocks * work.groups, kWkvThreads, 0, stream, work);
    if (error == cudaSuccess)
      error = launch(connect<State, kTokens, Step::groups>, blocks, kWkvThreads, 0, stream, work);
  }
  if (error == cudaSuccess)
    error = launch(connect<State, kTokens, Step::stretches>, blocks * work.groups, kWkvThreads, 0, stream, work);
  return error;
}

}  // namespace sola::cuda
