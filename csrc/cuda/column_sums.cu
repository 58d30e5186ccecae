// sums over the rows of a matrix, in a fixed order

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/tile.cuh"

namespace sola::cuda {
namespace {

constexpr int kSlices = 32;

// 32 columns of one of the matrices to a block, and so many threads to a column, each with several loads on their way
__global__ void __launch_bounds__(kWarp* kSlices, 1) column_sums(ColumnSumsParams p) {
  const bool second = int(blockIdx.x) % p.count != 0;
  const int64_t column = int64_t(int(blockIdx.x) / p.count) * kWarp + lane_of();
  const float* from = second ? p.from[1] : p.from[0];
  wait_for_results();
  double sum = 0.0;
  if (column < p.C) {
#pragma unroll 8
    for (int64_t row = warp_of(); row < p.rows; row += kSlices) sum += double(from[row * p.C + column]);
  }
  double* slices = reinterpret_cast<double*>(shared_memory());
  slices[threadIdx.x] = sum;
  sync_block();
  if (warp_of() > 0 || column >= p.C) return;
  for (int slice = 1; slice < kSlices; ++slice) sum += slices[slice * kWarp + lane_of()];
  (second ? p.to[1] : p.to[0])[column] = float(sum);
}

}  // namespace

int launch_column_sums(const ColumnSumsParams& p, void* stream) {
  constexpr size_t bytes = sizeof(double) * kWarp * kSlices;
  return launch(column_sums, p.count * ((p.C + kWarp - 1) / kWarp), kWarp * kSlices, bytes, stream, p, kEarly);
}

}  // namespace sola::cuda
