// every device primitive behind a small function, so that kernels name none
//
// The emulator of tests/emulator puts a cuda_runtime.h of its own first on the include path; it defines SOLA_EMULATOR
// and these functions for the CPU, where the very same kernels run thread by thread.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#define SOLA_DEVICE __device__ __forceinline__

namespace sola::cuda {

constexpr int kWarp = 32;

// 16-bit numbers as they lie in memory, and a float of 11 bits: as precise as Half, with the range of float
struct Bf16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};
struct Tf32 {
  float value;
};

struct alignas(16) Vec4 {
  uint32_t word[4];
};

#ifndef SOLA_EMULATOR

// 16 bytes by one instruction: of a struct of the same size and alignment nvcc loads and stores word by word
SOLA_DEVICE Vec4 load_vec4(const void* from) {
  const uint4 raw = *static_cast<const uint4*>(from);
  return {{raw.x, raw.y, raw.z, raw.w}};
}
SOLA_DEVICE void store_vec4(void* to, const Vec4& x) {
  *static_cast<uint4*>(to) = make_uint4(x.word[0], x.word[1], x.word[2], x.word[3]);
}
// the same to global memory, where nvcc takes stores in branches apart
SOLA_DEVICE void write_vec4(void* to, const Vec4& x) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(x.word[0]), "r"(x.word[1]), "r"(x.word[2]),
               "r"(x.word[3])
               : "memory");
}

// a pointer that was kept in memory, of which the compiler doesn't know that it is one to global memory
template <class T>
SOLA_DEVICE T* global_pointer(T* p) {
  __builtin_assume(__isGlobal(p));
  return p;
}

SOLA_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}

SOLA_DEVICE void sync_block() { __syncthreads(); }
SOLA_DEVICE void sync_warp() { __syncwarp(); }

// The kernel behind this one may start its blocks, if it was launched early. And in that one: until all kernels in
// front have ended. Nothing before compute capability 9.0.
SOLA_DEVICE void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
SOLA_DEVICE void wait_for_results() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// of a cluster of blocks, in kernels for compute capability 9.0 and later: a barrier, one's number in it, and the place
// of `mine` in the shared memory of another block
SOLA_DEVICE void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;" ::: "memory");
}
SOLA_DEVICE int cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return int(rank);
}
SOLA_DEVICE void* of_rank(void* mine, int rank) {
  void* place;
  asm("mapa.u64 %0, %1, %2;" : "=l"(place) : "l"(mine), "r"(rank));
  return place;
}

SOLA_DEVICE float shuffle_xor(float x, int lanes) { return __shfl_xor_sync(0xffffffffu, x, lanes); }
SOLA_DEVICE float shuffle_from(float x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }

// 2^x to 2 units in the last place, results below 2^−126 are 0
SOLA_DEVICE float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// the larger of two, NaN where one is
SOLA_DEVICE float larger(float a, float b) {
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}

// 1/x to 1 unit in the last place
SOLA_DEVICE float fast_reciprocal(float x) {
  float y;
  asm("rcp.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// the same in one instruction; x below 2^−126 is 0
SOLA_DEVICE float normal_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// low and high half of a word, rounded to nearest even
SOLA_DEVICE uint32_t pack_bf16(float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
SOLA_DEVICE uint32_t pack_half(float low, float high) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
SOLA_DEVICE float half_to_float(uint16_t bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}
SOLA_DEVICE float round_tf32(float x) {
  uint32_t word;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(x));
  return __uint_as_float(word);
}
SOLA_DEVICE float bits_to_float(uint32_t bits) { return __uint_as_float(bits); }
SOLA_DEVICE uint32_t float_to_bits(float x) { return __float_as_uint(x); }

SOLA_DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// a place in shared memory, to which bytes can be added
using SharedPlace = uint32_t;
SOLA_DEVICE SharedPlace shared_place(const void* p) { return shared_address(p); }

// four 8 × 8 matrices of 16-bit numbers; lane l names row l % 8 of matrix l / 8
SOLA_DEVICE void load_matrices(uint32_t (&r)[4], SharedPlace row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}
SOLA_DEVICE void load_matrices_transposed(uint32_t (&r)[4], SharedPlace row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

// c (16 × 8) += a (16 × 16) · b (16 × 8)
SOLA_DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Bf16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
SOLA_DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Half) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// c (16 × 8) += a (16 × 8) · b (8 × 8)
SOLA_DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Tf32) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 16 bytes from global to shared memory, on their way until wait_copies says otherwise
SOLA_DEVICE void copy_async(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
// the same where `exists`, otherwise zeros, and nothing is read
SOLA_DEVICE void copy_async(void* shared, const void* global, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(exists ? 16 : 0)
               : "memory");
}
// 8 bytes in the same way
SOLA_DEVICE void copy_two_async(void* shared, const void* global, bool exists) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(exists ? 8 : 0)
               : "memory");
}
SOLA_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// until at most `pending` of the committed groups are on their way
template <int pending>
SOLA_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// ptxas moves instructions within a basic block: waits to its begin, ahead of work that was meant to be done meanwhile,
// and work together for which registers then don't suffice. A block begins here: `never` is false, which the compiler
// can't know.
SOLA_DEVICE void begin_basic_block(bool never) {
  if (never) asm volatile("nanosleep.u32 1;" ::: "memory");
}

// x, of which the compiler keeps nothing in registers that it works out: it can't know that this is the same every time
SOLA_DEVICE unsigned anew(unsigned x) {
  asm volatile("" : "+r"(x));
  return x;
}

// asks for the line of global memory at p to come into the L2 cache
SOLA_DEVICE void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

#else

using SharedPlace = const unsigned char*;
inline SharedPlace shared_place(const void* p) { return static_cast<SharedPlace>(p); }
inline void begin_basic_block(bool) {}
inline unsigned anew(unsigned x) { return x; }
template <class T>
T* global_pointer(T* p) {
  return p;
}
inline Vec4 load_vec4(const void* from) { return *static_cast<const Vec4*>(from); }
inline void store_vec4(void* to, const Vec4& x) { *static_cast<Vec4*>(to) = x; }
inline void write_vec4(void* to, const Vec4& x) { store_vec4(to, x); }

using simt::bits_to_float, simt::fast_exp2, simt::fast_reciprocal, simt::float_to_bits, simt::half_to_float,
    simt::load_matrices, simt::normal_reciprocal;
using simt::cluster_rank, simt::commit_copies, simt::copy_async, simt::copy_two_async, simt::load_matrices_transposed,
    simt::pack_bf16, simt::pack_half;
using simt::larger, simt::let_next_start, simt::of_rank, simt::prefetch, simt::round_tf32, simt::shared_address,
    simt::shared_memory, simt::shuffle_from, simt::shuffle_xor, simt::sync_block, simt::sync_cluster, simt::sync_warp,
    simt::wait_copies, simt::wait_for_results;

inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Bf16) { simt::mma_bf16(c, a, b0, b1); }
inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Half) { simt::mma_half(c, a, b0, b1); }
inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Tf32) { simt::mma_tf32(c, a, b0, b1); }

#endif

}  // namespace sola::cuda
