// the one way to start a kernel
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cuda/numbers.cuh"
#include "cuda_features.h"

namespace sola::cuda {

// shared memory beyond this must be asked for
constexpr size_t kDefaultShared = 48 << 10;

// what the host tells apart beside CUDA's own errors
constexpr int kTooManyBlocks = -1, kTooMuchShared = -2;

// shared memory that a block may have on every device, as on those of compute capability 8.6, 8.9 and 12.0
constexpr size_t kLeastShared = 99 << 10;
// whether the current device gives it more than that, and enough
inline bool has_shared(size_t wanted) {
  int device = 0, bytes = 0;
  return may_use(CudaFeature::shared) && cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess &&
         wanted <= size_t(bytes);
}

#ifndef SOLA_EMULATOR
// Architectures that this unit is compiled for. Without one from 9.0 on, its kernels have no instruction to wait with,
// whatever they run on.
constexpr int kArchitectures[] = {__CUDA_ARCH_LIST__};
constexpr bool kCanWait = kArchitectures[sizeof(kArchitectures) / sizeof(int) - 1] >= 900;

// whether kernels on the current device can wait for what is in front of them
inline bool may_start_early() {
  int device = 0, major = 0;
  return kCanWait && cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major >= 9;
}
#endif

// `cluster`: neighbouring blocks that see each other's shared memory (compute capability 9.0), 0 in kernels that know
// of none. `early`: blocks may start as soon as all of the kernel in front have, where a device can do that (9.0); they
// call wait_for_results() before they read what any kernel in front has written, and before they write.
struct Manner {
  int cluster = 0;
  bool early = false;
};
constexpr Manner kEarly{0, true};

// Starts `blocks` blocks in one dimension, at most 2³¹ − 1; 0 for success.
template <class Params>
int launch(void (*kernel)(Params), int64_t blocks, int threads, size_t shared, [[maybe_unused]] void* stream,
           const Params& params, const Manner& manner = {}) {
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
  const bool early = manner.early && may_use(CudaFeature::pdl);
#ifdef SOLA_EMULATOR
  simt::launch(
      reinterpret_cast<const void*>(kernel), [&] { kernel(params); }, &params, blocks, threads, shared,
      manner.cluster > 0 ? manner.cluster : 1, early);
#else
  cudaLaunchAttribute attributes[2]{};
  unsigned count = 0;
  if (manner.cluster > 0) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {static_cast<unsigned>(manner.cluster), 1, 1};
  }
  if (early && may_start_early()) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = {static_cast<unsigned>(blocks), 1, 1};
  config.blockDim = {static_cast<unsigned>(threads), 1, 1};
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attributes;
  config.numAttrs = count;
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

// the same where kernels are of 16-bit types alone
template <class F>
int with_half(Dtype dtype, const F& f) {
  return dtype == Dtype::bf16 ? f(Bf16{}) : f(Half{});
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
