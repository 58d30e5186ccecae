// stands in for CUDA's cuda_runtime.h: kernels run on the CPU, every thread of a block as a fiber
//
// Warps, and the lanes of a warp, are run in a random order that a seed decides; a warp primitive or a barrier is where
// a lane stops until the others have come. Blocks run one after the other, in a shuffled order. Shared memory is full
// of NaN before each block, and what is copied asynchronously arrives at once, or as late as it may.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define SOLA_EMULATOR
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__

struct simt_uint3 {
  unsigned x = 0, y = 0, z = 0;
};
struct float2 {
  float x = 0, y = 0;
};
extern simt_uint3 threadIdx, blockIdx, blockDim, gridDim;

using cudaError_t = int;
using cudaStream_t = void*;
constexpr int cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9,
              cudaErrorInvalidDeviceFunction = 98, cudaErrorNoKernelImageForDevice = 209, cudaErrorLaunchFailure = 719;
constexpr int cudaFuncAttributeMaxDynamicSharedMemorySize = 8, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97;
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, int attribute, int device);
const char* cudaGetErrorString(int error);
// the last error stays until somebody asks, as with the CUDA runtime
cudaError_t cudaGetLastError();

template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}

namespace simt {

// runs `body`, or what has been made of the kernel's PTX (ptx.h), with its parameters
void launch(const void* kernel, const std::function<void()>& body, const void* params, int64_t blocks, int threads,
            size_t shared, int cluster, bool early);
// what a device would say to these (limits.cpp)
cudaError_t ask_for_shared(const void* kernel, int bytes);
cudaError_t check_launch(const void* kernel, int64_t blocks, int threads, size_t shared, int cluster);
cudaError_t keep_error(cudaError_t error);
void set_most_shared(int bytes);
void set_capability(int it);
int capability();
void set_seed(uint64_t seed);
int64_t blocks_run();

unsigned char* shared_memory();
void sync_block();
// kernels that were launched early run after those in front all the same; what they touch before they wait is watched
inline void let_next_start() {}
void wait_for_results();
// blocks of a cluster, and the place of `mine` in the shared memory of another of them
void sync_cluster();
int cluster_rank();
void* of_rank(void* mine, int rank);
void sync_warp();
float shuffle_xor(float x, int lanes);
float shuffle_from(float x, int lane);
void load_matrices(uint32_t (&r)[4], const void* row);
void load_matrices_transposed(uint32_t (&r)[4], const void* row);
void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void mma_half(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void mma_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void copy_async(void* shared, const void* global, bool exists = true);
void copy_two_async(void* shared, const void* global, bool exists);
void commit_copies();
void wait_for_copies(int pending);

// products of warpgroups (warpgroup.cpp): sums are columns/8 times 4 of a lane
uint32_t shared_address(const void* p);
void start_product(bool bf16, float* sums, int columns, uint64_t left, uint64_t right, bool adds);
void start_product(bool bf16, float* sums, int columns, const uint32_t* left, uint64_t right, bool across);
void arrive_warpgroup();
void commit_products();
void wait_for_products(int pending);
void publish_to_tensor_cores();

// reads where the GPU would, so that a sanitizer sees addresses that lie outside
inline void prefetch(const void* p) { *static_cast<const volatile unsigned char*>(p); }
template <int pending>
void wait_copies() {
  wait_for_copies(pending);
}

template <int pending>
void wait_products() {
  wait_for_products(pending);
}

inline float bits_to_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t float_to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
// off by some units in the last place, which depend on the number: as far as PTX lets approximations be
inline float blur(float exact, float x, int units) {
  const uint32_t hash = (float_to_bits(x) * 2654435761u) >> 16;
  if (!std::isnormal(exact) || !std::isnormal(x)) return exact;
  return bits_to_float(float_to_bits(exact) + hash % uint32_t(2 * units + 1) - uint32_t(units));
}
inline float fast_exp2(float x) {
  const float y = blur(exp2f(x), x, 2);
  return y < 0x1p-126f ? 0.0f : y;
}
inline float larger(float a, float b) { return a > b || a != a ? a : b; }
inline float fast_reciprocal(float x) { return blur(1.0f / x, x, 1); }
inline float normal_reciprocal(float x) {
  const auto flushed = [](float y) { return std::fabs(y) < 0x1p-126f ? std::copysign(0.0f, y) : y; };
  return flushed(fast_reciprocal(flushed(x)));
}
inline uint16_t round_bf16(float x) {
  const uint32_t bits = float_to_bits(x);
  if (x != x) return 0x7fff;
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline uint32_t pack_bf16(float low, float high) { return uint32_t(round_bf16(high)) << 16 | round_bf16(low); }
inline uint16_t round_half(float x) {
  const _Float16 y = static_cast<_Float16>(x);
  uint16_t bits;
  std::memcpy(&bits, &y, 2);
  return bits;
}
inline uint32_t pack_half(float low, float high) { return uint32_t(round_half(high)) << 16 | round_half(low); }
inline float half_to_float(uint16_t bits) {
  _Float16 y;
  std::memcpy(&y, &bits, 2);
  return static_cast<float>(y);
}
// to nearest, ties away from zero
inline float round_tf32(float x) {
  const uint32_t bits = float_to_bits(x);
  if ((bits & 0x7f800000) == 0x7f800000) return x;
  return bits_to_float((bits + 0x1000) & 0xffffe000);
}

}  // namespace simt

template <class F>
cudaError_t cudaFuncSetAttribute(F kernel, int, int bytes) {
  return simt::ask_for_shared(reinterpret_cast<const void*>(kernel), bytes);
}
