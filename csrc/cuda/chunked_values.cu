// linear attention in chunks: outputs, and with keys and queries in each other's place the gradient of v

#include "cuda/chunked.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.h"

namespace sola::cuda {
namespace {

template <class In, int T>
__global__ void __launch_bounds__(kThreads, 1) values(ChunkValuesParams p) {
  using Tiles = ChunkTiles<In, T>;
  const Tiles tiles(shared_memory());
  const ChunkedCall& call = p.call;
  const ChunkPlace at = chunk_place(call);
  const float* powers = tiles.powers();
  const float* weights = tiles.column_numbers();
  load_powers(tiles.powers(), log_decay(call.decay, at.inner));
  load_numbers(tiles.column_numbers(), p.weight, call, at, 1.0f);
  const Rows<const In> x = chunk_rows<In>(p.x, at, call.D);
  const auto map = [&](int, float number) { return feature<is_half<In>>(call.map, number); };

  float sums[1][T / 8][4];
  clear(sums);
  // two threads add up the denominator of each row that comes from states
  const int my_row = int(threadIdx.x) / 2, half = int(threadIdx.x) % 2;
  float denominator = 0.0f;
#pragma unroll 1
  for (int i = 0; i < 2; ++i) {
    const Side side = i == 0 ? Side::left : Side::right;
    const float* state = state_of(p.states, call, at, side);
    if (!state) continue;
    const float* companion = state + call.D * call.V;
    multiply_state<Along::other, In, T>(
        sums, tiles, x,
        [&](int row, float number) { return powers[reads(side, at, row)] * feature<is_half<In>>(call.map, number); },
        part_of(Rows<const float>{state, call.V, int(call.D), int(call.V)}, at, T),
        [&](const auto* phi, int k) {
          for (int i = half; p.normaliser && i < kDepth<T> && k + i < call.D; i += 2)
            denominator = fmaf(to_float(phi[my_row * Tiles::kStride + i]), companion[k + i], denominator);
        });
  }

  float pairs[1][kTile / 8][4];
  clear(pairs);
  multiply_pairs<In, T>(pairs, tiles, x, map, chunk_rows<In>(p.y, at, call.D), map);
  float total[2] = {};
  for_sums<1, kTile / 8>([&](int, int n, int i, int row, int column) {
    const float weight = pair_weight(call, powers, 16 * warp_of() + row, column);
    pairs[0][n][i] = weight == 0.0f ? 0.0f : weight * pairs[0][n][i];
    total[i / 2] += pairs[0][n][i];
  });
  spread_pairs<In, T>(sums, pairs, tiles, part_of(chunk_rows<In>(p.u, at, call.V), at, T),
                      [&](int row, float number) { return weights[row] * number; });
  if (p.normaliser) {
    float* rows = tiles.row_numbers();
    denominator += shuffle_xor(denominator, 1);
    if (half == 0) rows[my_row] = denominator;
    sync_block();
    float inverse[2];
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const int row = 16 * warp_of() + lane_of() / 4 + 8 * side;
      const float normaliser = rows[row] + quad_sum(total[side]) + p.eps;
      inverse[side] = reciprocal(normaliser);
      if (at.part == 0 && lane_of() % 4 == 0 && row < at.rows)
        p.normaliser[at.head * call.tokens + at.first + row] = normaliser;
    }
    for_sums<1, T / 8>([&](int m, int n, int i, int, int) { sums[m][n][i] *= inverse[i / 2]; });
  }
  const Rows<In> out{row_of<In>(p.out, at.batch, at.first, at.inner), p.out.token, at.rows, int(call.V)};
  write_sums<In, T>(sums, tiles, part_of(out, at, T));
}

// one thread per number of a state walks over the chunks, several loads ahead
__global__ void __launch_bounds__(kThreads, 1) connect(ChunkConnectParams p) {
  constexpr int kAhead = 8;
  const int64_t blocks = (p.numbers + kThreads - 1) / kThreads, head = blockIdx.x / blocks;
  const int64_t number = blockIdx.x % blocks * kThreads + threadIdx.x;
  if (number >= p.numbers) return;
  const float logarithm = log_decay(p.decay, head % p.heads), factor = expf(logarithm * float(kTile));
  const float last = expf(logarithm * float(p.tokens - (p.chunks - 1) * kTile));
  float* states = p.states + head * p.chunks * p.numbers + number;
  const auto at = [&](int64_t i) { return (p.side == Side::left ? i : p.chunks - 1 - i) * p.numbers; };
  float running = 0.0f;
  for (int64_t first = 0; first < p.chunks; first += kAhead) {
    float own[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) own[i] = first + i < p.chunks ? states[at(first + i)] : 0.0f;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i >= p.chunks) break;
      const int64_t place = at(first + i);
      states[place] = running;
      running = fmaf(place == (p.chunks - 1) * p.numbers ? last : factor, running, own[i]);
    }
  }
}

}  // namespace

int launch_chunk_values(const ChunkValuesParams& p, Dtype dtype, void* stream) {
  return with_input(dtype, [&](auto in) {
    using In = decltype(in);
    return with_width<32, 64, kPartColumns>(p.call.V, [&](auto width) {
      constexpr int T = decltype(width)::value;
      return launch(values<In, T>, p.call.batches * p.call.heads * p.call.chunks * parts_of(p.call.V), kThreads,
                    ChunkTiles<In, T>::kBytes, stream, p);
    });
  });
}

int launch_chunk_connect(const ChunkConnectParams& p, void* stream) {
  return launch(connect, p.batches * p.heads * ((p.numbers + kThreads - 1) / kThreads), kThreads, 0, stream, p);
}

}  // namespace sola::cuda
