// the one way to start a kernel
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cuda/numbers.cuh"

namespace sola::cuda {

// shared memory beyond this must be asked for
constexpr size_t kDefaultShared = 48 << 10;

// what the host tells apart beside CUDA's own errors
constexpr int kTooManyBlocks = -1, kTooMuchShared = -2;

// Starts `blocks` blocks in one dimension, at most 2³¹ − 1; 0 for success. Beyond 1, `cluster` neighbours of them see
// each other's shared memory (compute capability 9.0).
template <class Params>
int launch(void (*kernel)(Params), int64_t blocks, int threads, size_t shared, [[maybe_unused]] void* stream,
           const Params& params, int cluster = 1) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > 0x7fffffff) return kTooManyBlocks;
  if (shared > kDefaultShared) {
    const auto asked =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (asked != cudaSuccess) {
      // the runtime keeps it, and the next launch would be blamed
      (void)cudaGetLastError();
      return asked == cudaErrorInvalidValue ? kTooMuchShared : asked;
    }
  }
#ifdef SOLA_EMULATOR
  simt::launch(reinterpret_cast<const void*>(kernel), [&] { kernel(params); }, blocks, threads, shared, cluster);
#else
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = {static_cast<unsigned>(blocks), 1, 1};
  config.blockDim = {static_cast<unsigned>(threads), 1, 1};
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = cluster > 1 ? 1 : 0;
  (void)cudaLaunchKernelEx(&config, kernel, params);
#endif
  return cudaGetLastError();
}

// calls f(In{}) for the type in memory
template <class F>
int with_input(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::f32:
      return f(float{});
    case Dtype::bf16:
      return f(Bf16{});
    case Dtype::f16:
      return f(Half{});
    default:
      return cudaErrorInvalidValue;
  }
}

// calls f(integral_constant) with the smallest of the sizes that holds `dim`; the last one where none does
template <int size, int... larger, class F>
int with_width(int64_t dim, const F& f) {
  if constexpr (sizeof...(larger) == 0) {
    return f(std::integral_constant<int, size>{});
  } else {
    return dim <= size ? f(std::integral_constant<int, size>{}) : with_width<larger...>(dim, f);
  }
}

}  // namespace sola::cuda
