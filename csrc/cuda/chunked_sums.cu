// linear attention in chunks, backward: small sums before and after the products

#include "cuda/chunked.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.h"

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

// pairs with a key before a chunk and a query behind it have the chunk's tokens in their distance; and mirrored
__global__ void __launch_bounds__(kThreads, 1) crossing(ChunkCrossingParams p) {
  const ChunkPlace at = chunk_place(p.call);
  const int64_t products = p.call.D * p.call.V, numbers = products + (p.companion ? p.call.D : 0);
  double sum = 0.0;
  for (const Side side : {Side::left, Side::right}) {
    const Side other = side == Side::left ? Side::right : Side::left;
    const float* keys = state_of(p.keys, p.call, at, side);
    const float* grads = state_of(p.grads, p.call, at, other);
    if (!keys || !grads) continue;
    for (int64_t i = threadIdx.x; i < numbers; i += kThreads) sum += double(keys[i]) * double(grads[i]);
  }
  double* of_threads = reinterpret_cast<double*>(shared_memory());
  of_threads[threadIdx.x] = sum;
  sync_block();
  if (threadIdx.x > 0) return;
  for (int i = 1; i < kThreads; ++i) sum += of_threads[i];
  const int64_t shares = 2 * ((p.call.D + kPartColumns - 1) / kPartColumns) + 1;
  const double weight = exp(double(log_decay(p.call.decay, at.inner)) * double(at.rows + 1));
  p.grad_log_decay[(at.head * p.call.chunks + at.chunk + 1) * shares - 1] = float(double(at.rows) * weight * sum);
}

// dγ = d log γ / γ, by one block per head
__global__ void __launch_bounds__(kThreads, 1) add_decays(ChunkDecayParams p) {
  const int64_t head = blockIdx.x, per_head = p.chunks * p.shares, count = p.batches * per_head;
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads)
    sum += double(p.grad_log_decay[(i / per_head * p.heads + head) * per_head + i % per_head]);
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

int launch_chunk_crossing(const ChunkCrossingParams& p, void* stream) {
  return launch(crossing, p.call.batches * p.call.heads * p.call.chunks, kThreads, kShares, stream, p);
}

int launch_chunk_decay(const ChunkDecayParams& p, void* stream) {
  return launch(add_decays, p.heads, kThreads, kShares, stream, p);
}

}  // namespace sola::cuda
