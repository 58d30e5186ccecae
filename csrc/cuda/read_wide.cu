// what read.cu computes, for head dims with which a state doesn't fit in shared memory: a block per 64 tokens, and the
// state from global memory, tile by tile

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/state.cuh"

namespace sola::cuda {
namespace {

template <class In, int T>
constexpr size_t kReadBytes = StateTiles<In, T>::kTiles + sizeof(float) * kTile;

struct Place {
  int64_t head, batch, first;
  int rows;
};

SOLA_DEVICE Place place_of(const ReadParams& p) {
  const int64_t tiles = (p.tokens + kTile - 1) / kTile, head = blockIdx.x / tiles, first = blockIdx.x % tiles * kTile;
  return {head, head / p.heads, first, int(min(int64_t(kTile), p.tokens - first))};
}

template <class In>
SOLA_DEVICE Rows<const In> rows_at(const ReadParams& p, const View& view, const Place& at, int64_t columns) {
  return {row_of<const In>(view, at.batch, at.first, at.head % p.heads), view.token, at.rows, int(columns)};
}

template <class In>
SOLA_DEVICE Rows<In> out_at(const ReadParams& p, const Place& at, int64_t columns) {
  return {row_of<In>(p.out, at.batch, at.first, at.head % p.heads), p.out.token, at.rows, int(columns)};
}

template <class In, int T>
__global__ void __launch_bounds__(kThreads, 1) read_values(ReadParams p) {
  using Tiles = StateTiles<In, T>;
  const Tiles tiles{shared_memory()};
  const Place at = place_of(p);
  const float* z = p.companion ? p.companion + at.head * p.D : nullptr;
  float sums[1][T / 8][4];
  clear(sums);
  // two threads add up the denominator of each row
  const int row = int(threadIdx.x) / 2, half = int(threadIdx.x) % 2;
  float denominator = 0.0f;
  multiply_state<Along::other>(
      sums, tiles, rows_at<In>(p, p.x, at, p.D), [&](int, float x) { return feature<is_half<In>>(p.map, x); },
      Rows<const float>{p.state + at.head * p.D * p.V, p.V, int(p.D), int(p.V)},
      [&](const auto* phi, int k) {
        for (int i = half; z && i < kDepth && k + i < p.D; i += 2)
          denominator = fmaf(to_float(phi[row * Tiles::kStride + i]), z[k + i], denominator);
      });
  if (z) {
    denominator += shuffle_xor(denominator, 1);
    float* inverse = tiles.rest();
    if (half == 0) inverse[row] = reciprocal(denominator + p.eps);
    sync_block();
    for_sums<1, T / 8>([&](int m, int n, int i, int r, int) { sums[m][n][i] *= inverse[16 * warp_of() + r]; });
  }
  write_sums(sums, tiles, out_at<In>(p, at, p.V));
}

// a row's g to dφ(q); keeps r and dd for the gather that follows
template <int T>
SOLA_DEVICE void normalise(const ReadParams& p, const Place& at, int row, const float (&phi)[T / 32],
                           float (&numbers)[T / 32]) {
  const float* z = p.companion + at.head * p.D;
  float along_z = 0.0f, along_g = 0.0f, sums[T / 32];
#pragma unroll
  for (int j = 0; j < T / 32; ++j) {
    const int column = 32 * j + lane_of();
    sums[j] = column < p.D ? z[column] : 0.0f;
    along_z = fmaf(phi[j], sums[j], along_z);
    along_g = fmaf(phi[j], numbers[j], along_g);
  }
  const float r = reciprocal(warp_sum(along_z) + p.eps), dd = -r * r * warp_sum(along_g);
#pragma unroll
  for (int j = 0; j < T / 32; ++j) numbers[j] = r * numbers[j] + dd * sums[j];
  if (lane_of() == 0) {
    p.inverse[at.head * p.tokens + at.first + row] = r;
    p.grad_denominator[at.head * p.tokens + at.first + row] = dd;
  }
}

template <class In, int T>
__global__ void __launch_bounds__(kThreads, 1) read_gradients(ReadParams p) {
  const StateTiles<In, T> tiles{shared_memory()};
  const Place at = place_of(p);
  float sums[1][T / 8][4];
  clear(sums);
  multiply_state<Along::depth>(
      sums, tiles, rows_at<In>(p, p.x, at, p.V), [](int, float x) { return x; },
      Rows<const float>{p.state + at.head * p.D * p.V, p.V, int(p.D), int(p.V)}, [](const auto*, int) {});
  const Rows<const In> x = rows_at<In>(p, p.phi, at, p.D);
  finish_rows(sums, tiles, out_at<In>(p, at, p.D), [&](int row, float (&numbers)[T / 32]) {
    float phi[T / 32];
    load_phi<In, T>(p.map, x, row, phi);
    if (p.companion && p.inverse) normalise<T>(p, at, row, phi, numbers);
#pragma unroll
    for (int j = 0; j < T / 32; ++j) {
      const int column = 32 * j + lane_of();
      if (p.companion && !p.inverse && column < p.D) numbers[j] += p.companion[at.head * p.D + column];
      numbers[j] *= feature_slope(p.map, phi[j]);
    }
  });
}

template <class In, int T>
int start(const ReadParams& p, bool values, void* stream) {
  const int64_t blocks = p.batches * p.heads * ((p.tokens + kTile - 1) / kTile);
  return launch(values ? read_values<In, T> : read_gradients<In, T>, blocks, kThreads, kReadBytes<In, T>, stream, p);
}

int start_width(const ReadParams& p, bool values, Dtype dtype, void* stream) {
  return with_input(dtype, [&](auto in) {
    return with_width<64, 128, 256>(
        values ? p.V : p.D, [&](auto width) { return start<decltype(in), decltype(width)::value>(p, values, stream); });
  });
}

}  // namespace

int launch_wide_read(const ReadParams& p, Read kind, Dtype dtype, void* stream) {
  const int error = start_width(p, kind == Read::values, dtype, stream);
  if (error != cudaSuccess || kind != Read::key_gradients) return error;
  ReadParams values = p;
  values.x = p.phi;
  values.out = p.second;
  values.companion = nullptr;
  return start_width(values, true, dtype, stream);
}

}  // namespace sola::cuda
