// linear attention in chunks: the gradients of q and k, and of the decay
//
// With X = w (α a · β b + α′ + β′) for the pairs of a chunk, dφ(x) = X φ(y) + what the states add. The gradient of log
// γ sums distance · weight · pair · gradient: pairs of a chunk one by one; other pairs by the part of the distance that
// lies in the query's chunk, in the key's chunk, and in chunks between them.

#include "cuda/chunked.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.h"

namespace sola::cuda {
namespace {

// Σ over the chunk's rows of distance · φ(x)·(what a state added to dφ(x)); `before` holds φ(x)·sums without this
// state, the one of row i in lane i, and is updated
template <class In, int T>
SOLA_DEVICE float along_state(const ChunkGradientsParams& p, const ChunkPlace& at, Side side,
                              const Sums<1, T / 8>& sums, ChunkTiles<In, T> tiles, const float* companion,
                              float& before) {
  const ChunkedCall& call = p.call;
  const Rows<const In> x = part_of(chunk_rows<In>(p.x, at, call.D), at, T);
  const float *powers = tiles.powers(), *coefficients = tiles.row_numbers() + kTile;
  float total = 0.0f;
  for_rows<In, T>(sums, tiles, at.rows, [&](int row, float (&numbers)[T / 32]) {
    float phi[T / 32], along = 0.0f, along_companion = 0.0f;
    load_phi<In, T>(call.map, x, row, phi);
#pragma unroll
    for (int j = 0; j < T / 32; ++j) {
      const int column = 32 * j + lane_of();
      along = fmaf(phi[j], numbers[j], along);
      if (p.companion && column < x.columns) along_companion = fmaf(phi[j], companion[column], along_companion);
    }
    along = warp_sum(along);
    const int exponent = reads(side, at, row);
    const float weight = powers[exponent] * (call.rows_are_keys ? 1.0f : coefficients[row]);
    const float added = along - shuffle_from(before, row % 16) + weight * warp_sum(along_companion);
    total += float(call.rows_are_keys ? exponent - 1 : exponent) * added;
    if (lane_of() == row % 16) before = along;
  });
  return total;
}

// one number per warp to one per block, in the order of the warps
SOLA_DEVICE float block_sum(float of_warp, float* scratch) {
  sync_block();
  if (lane_of() == 0) scratch[warp_of()] = of_warp;
  sync_block();
  float sum = 0.0f;
  for (int warp = 0; warp < kThreads / kWarp; ++warp) sum += scratch[warp];
  return sum;
}

template <class In, int T>
__global__ void __launch_bounds__(kThreads, 1) gradients(ChunkGradientsParams p) {
  const ChunkTiles<In, T> tiles(shared_memory());
  const ChunkedCall& call = p.call;
  const ChunkPlace at = chunk_place(call);
  const float* powers = tiles.powers();
  const float *row_weights = tiles.row_numbers(), *row_coefficients = row_weights + kTile;
  const float *column_weights = tiles.column_numbers(), *column_coefficients = column_weights + kTile;
  load_powers(tiles.powers(), log_decay(call.decay, at.inner));
  load_numbers(tiles.row_numbers(), p.row_weight, call, at, 1.0f);
  load_numbers(tiles.row_numbers() + kTile, p.row_coefficient, call, at, 0.0f);
  load_numbers(tiles.column_numbers(), p.column_weight, call, at, 1.0f);
  load_numbers(tiles.column_numbers() + kTile, p.column_coefficient, call, at, 0.0f);

  const Rows<const In> a = chunk_rows<In>(p.a, at, call.V), b = chunk_rows<In>(p.b, at, call.V);
  const Rows<const In> x = chunk_rows<In>(p.x, at, call.D), y = chunk_rows<In>(p.y, at, call.D);
  const auto map = [&](int, float number) { return feature<is_half<In>>(call.map, number); };
  float sums[1][T / 8][4];
  clear(sums);
  float of_decay = 0.0f, before = 0.0f;
#pragma unroll 1
  for (int i = 0; i < 2; ++i) {
    const Side side = i == 0 ? Side::left : Side::right;
    const float* state = state_of(p.states, call, at, side);
    if (!state) continue;
    multiply_state<Along::depth, In, T>(
        sums, tiles, a, [&](int row, float number) { return powers[reads(side, at, row)] * row_weights[row] * number; },
        Rows<const float>{state + at.column * call.V, call.V, min(T, int(call.D) - at.column), int(call.V)},
        [](const auto*, int) {});
    if (p.grad_log_decay)
      of_decay += along_state<In, T>(p, at, side, sums, tiles, state + call.D * call.V + at.column, before);
  }

  float grads[1][kTile / 8][4];
  clear(grads);
  multiply_pairs<In, T>(
      grads, tiles, a, [&](int row, float number) { return row_weights[row] * number; }, b,
      [&](int row, float number) { return column_weights[row] * number; });
  if (p.grad_log_decay && !call.rows_are_keys && at.part == 0) {
    float pairs[1][kTile / 8][4];
    clear(pairs);
    multiply_pairs<In, T>(pairs, tiles, x, map, y, map);
    float total = 0.0f;
    for_sums<1, kTile / 8>([&](int, int n, int i, int row, int column) {
      const int r = 16 * warp_of() + row, distance = r > column ? r - column : column - r;
      const float weight = pair_weight(call, powers, r, column);
      const float grad = grads[0][n][i] + row_coefficients[r] + column_coefficients[column];
      if (weight != 0.0f && r < at.rows && column < at.rows) total += float(distance) * weight * pairs[0][n][i] * grad;
    });
    of_decay += warp_sum(total);
  }
  for_sums<1, kTile / 8>([&](int, int n, int i, int row, int column) {
    const int r = 16 * warp_of() + row;
    const float weight = pair_weight(call, powers, r, column);
    const float grad = grads[0][n][i] + row_coefficients[r] + column_coefficients[column];
    grads[0][n][i] = weight == 0.0f ? 0.0f : weight * grad;
  });
  spread_pairs<In, T>(sums, grads, tiles, part_of(y, at, T), map);

  const Rows<const In> mine = part_of(x, at, T);
  const Rows<In> out{row_of<In>(p.out, at.batch, at.first, at.inner), p.out.token, at.rows, int(call.D)};
  finish_rows<In, T>(sums, tiles, part_of(out, at, T), [&](int row, float (&numbers)[T / 32]) {
    float phi[T / 32];
    load_phi<In, T>(call.map, mine, row, phi);
    const float coefficient = call.rows_are_keys ? 1.0f : row_coefficients[row];
#pragma unroll
    for (int j = 0; j < T / 32; ++j) {
      const int column = 32 * j + lane_of();
      for (int i = 0; i < 2; ++i) {
        const Side side = i == 0 ? Side::left : Side::right;
        const float* state = p.companion ? state_of(p.states, call, at, side) : nullptr;
        if (state && column < mine.columns)
          numbers[j] =
              fmaf(powers[reads(side, at, row)] * coefficient, state[call.D * call.V + at.column + column], numbers[j]);
      }
      numbers[j] *= feature_slope(call.map, phi[j]);
    }
  });
  if (!p.grad_log_decay) return;
  const float sum = block_sum(of_decay, tiles.row_numbers());
  const int64_t parts = (call.D + kPartColumns - 1) / kPartColumns, share = at.part + (call.rows_are_keys ? parts : 0);
  if (threadIdx.x == 0) p.grad_log_decay[(at.head * call.chunks + at.chunk) * (2 * parts + 1) + share] = sum;
}

}  // namespace

int launch_chunk_gradients(const ChunkGradientsParams& p, Dtype dtype, void* stream) {
  return with_input(dtype, [&](auto in) {
    using In = decltype(in);
    return with_width<32, 64, kPartColumns>(p.call.D, [&](auto width) {
      constexpr int T = decltype(width)::value;
      return launch(gradients<In, T>, p.call.batches * p.call.heads * p.call.chunks * parts_of(p.call.D), kThreads,
                    ChunkTiles<In, T>::kBytes, stream, p);
    });
  });
}

}  // namespace sola::cuda
