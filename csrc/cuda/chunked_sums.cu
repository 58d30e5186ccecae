// linear attention in chunks: small sums before, between and after the walks

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/tile.cuh"

namespace sola::cuda {
namespace {

template <class In>
__global__ void __launch_bounds__(kThreads, 1) denominators(ChunkDenominatorParams p) {
  const int64_t index = int64_t(blockIdx.x) * (kThreads / kWarp) + warp_of(), head = index / p.tokens;
  if (index >= p.batches * p.heads * p.tokens) return;
  const int64_t token = index % p.tokens;
  const In* grad = row_of<const In>(p.grad_out, head / p.heads, token, head % p.heads);
  const In* out = row_of<const In>(p.out, head / p.heads, token, head % p.heads);
  float along = 0.0f;
  for (int i = lane_of(); i < p.V; i += kWarp) along = fmaf(to_float(grad[i]), to_float(out[i]), along);
  along = warp_sum(along);
  if (lane_of() > 0) return;
  const float inverse = reciprocal(p.normaliser[index]);
  p.inverse[index] = inverse;
  p.grad_denominator[index] = -inverse * along;
}

// one thread per number of a state walks over the stretches, several loads ahead
__global__ void __launch_bounds__(kThreads, 1) connect(ChunkConnectParams p) {
  constexpr int kAhead = 8;
  const WalkCall& call = p.call;
  const int64_t blocks = (p.numbers + kThreads - 1) / kThreads, head = blockIdx.x / blocks, last = call.stretches - 1;
  const int64_t number = blockIdx.x % blocks * kThreads + threadIdx.x;
  if (number >= p.numbers) return;
  const float logarithm = log_decay(call.decay, head % call.heads);
  const int64_t first = head * call.stretches * p.numbers + number;
  float running = 0.0f, tangent = 0.0f;
  for (int64_t begin = 0; begin < call.stretches; begin += kAhead) {
    const auto place = [&](int i) {
      return first + (call.side == Side::left ? begin + i : last - begin - i) * p.numbers;
    };
    float own[kAhead], own_tangent[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      own[i] = begin + i <= last ? p.states[place(i)] : 0.0f;
      own_tangent[i] = p.tangents && begin + i <= last ? p.tangents[place(i)] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (begin + i > last) break;
      p.states[place(i)] = running;
      if (p.tangents) p.tangents[place(i)] = tangent;
      const int64_t stretch = call.side == Side::left ? begin + i : last - begin - i;
      const float tokens = float(min(call.per_stretch, call.tokens - stretch * call.per_stretch));
      const float factor = expf(logarithm * tokens);
      tangent = fmaf(factor, fmaf(tokens, running, tangent), own_tangent[i]);
      running = fmaf(factor, running, own[i]);
    }
  }
}

// dγ = d log γ / γ, by one block per head
__global__ void __launch_bounds__(kThreads, 1) add_decays(ChunkDecayParams p) {
  const int64_t head = blockIdx.x;
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < p.batches * p.shares; i += kThreads)
    sum += double(p.grad_log_decay[(i / p.shares * p.heads + head) * p.shares + i % p.shares]);
  double* shares = reinterpret_cast<double*>(shared_memory());
  shares[threadIdx.x] = sum;
  sync_block();
  if (threadIdx.x > 0) return;
  for (int i = 1; i < kThreads; ++i) sum += shares[i];
  p.grad_decay[head] = float(sum / double(p.decay[head]));
}

constexpr size_t kShares = sizeof(double) * kThreads;

}  // namespace

int launch_chunk_denominators(const ChunkDenominatorParams& p, Dtype dtype, void* stream) {
  constexpr int warps = kThreads / kWarp;
  return with_input(dtype, [&](auto in) {
    return launch(denominators<decltype(in)>, (p.batches * p.heads * p.tokens + warps - 1) / warps, kThreads, 0, stream,
                  p);
  });
}

int launch_chunk_connect(const ChunkConnectParams& p, void* stream) {
  const int64_t heads = p.call.batches * p.call.heads;
  return launch(connect, heads * ((p.numbers + kThreads - 1) / kThreads), kThreads, 0, stream, p);
}

int launch_chunk_decay(const ChunkDecayParams& p, void* stream) {
  return launch(add_decays, p.heads, kThreads, kShares, stream, p);
}

}  // namespace sola::cuda
