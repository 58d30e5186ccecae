// Hopper's asynchronous tensor cores behind small functions (compute capability 9.0, sm_90a): products of a warpgroup,
// four warps that have 16 rows each, with sums in the places of product.cuh. PTX ISA, "Asynchronous Warpgroup Level
// Matrix Instructions".
#pragma once

#include "cuda/product.cuh"

namespace sola::cuda {

constexpr int kWarpgroup = 4 * kWarp;
SOLA_DEVICE int warpgroup_of() { return int(threadIdx.x) / kWarpgroup; }

#ifndef SOLA_EMULATOR

// Before a warpgroup's first product, and after registers that a product uses have been written. Lanes that have parted
// meet again.
SOLA_DEVICE void arrive_warpgroup() {
  sync_warp();
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
SOLA_DEVICE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// until at most `pending` of the committed groups are under way
template <int pending>
SOLA_DEVICE void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
// what this thread has written to shared memory can be seen by tensor cores, once a barrier has been passed
SOLA_DEVICE void publish_to_tensor_cores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Keeps the compiler from moving work on sums, or on operands in registers, across the places where products begin and
// end.
template <int NT>
SOLA_DEVICE void hold(float (&sums)[NT][4]) {
#pragma unroll
  for (int n = 0; n < NT; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(sums[n][i])::"memory");
}
template <int KT>
SOLA_DEVICE void hold(uint32_t (&words)[KT][4]) {
#pragma unroll
  for (int k = 0; k < KT; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(words[k][i])::"memory");
}

// clang-format off
#define SOLA_FOUR(d, n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define SOLA_SIXTEEN(d, n) SOLA_FOUR(d, n), SOLA_FOUR(d, n + 1), SOLA_FOUR(d, n + 2), SOLA_FOUR(d, n + 3)
#define SOLA_SUMS_32(d) SOLA_SIXTEEN(d, 0)
#define SOLA_SUMS_64(d) SOLA_SIXTEEN(d, 0), SOLA_SIXTEEN(d, 4)
#define SOLA_SUMS_96(d) SOLA_SUMS_64(d), SOLA_SIXTEEN(d, 8)
#define SOLA_SUMS_128(d) SOLA_SUMS_96(d), SOLA_SIXTEEN(d, 12)
#define SOLA_SUMS_192(d) SOLA_SUMS_128(d), SOLA_SIXTEEN(d, 16), SOLA_SIXTEEN(d, 20)
#define SOLA_NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define SOLA_NAMES_32 SOLA_NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SOLA_NAMES_48 SOLA_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define SOLA_NAMES_64 SOLA_NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SOLA_NAMES_80 SOLA_NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define SOLA_NAMES_96 SOLA_NAMES_80 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"

// both operands in shared memory, depth along rows
#define SOLA_PRODUCT(columns, type, names, a, b, accumulate)                                              \
  asm volatile(                                                                                           \
      "{.reg .pred p; setp.ne.b32 p, " accumulate ", 0; wgmma.mma_async.sync.aligned.m64n" #columns       \
      "k16.f32." type "." type " {" names "}, " a ", " b ", p, 1, 1, 0, 0;}"                              \
      : SOLA_SUMS_##columns(sums)                                                                         \
      : "l"(left), "l"(right), "r"(int(adds)))
// the left operand in registers; across: "1" where the right one has its depth across rows
#define SOLA_PRODUCT_OF_REGISTERS(columns, type, across, names, a, b)                                     \
  asm volatile(                                                                                           \
      "{.reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned.m64n" #columns                    \
      "k16.f32." type "." type " {" names "}, {" a "}, " b ", p, 1, 1, " across ";}"                      \
      : SOLA_SUMS_##columns(sums)                                                                         \
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right))
#define SOLA_PRODUCTS(type)                                                                               \
  if constexpr (NT == 4) SOLA_PRODUCT(32, type, SOLA_NAMES_16, "%16", "%17", "%18");                      \
  if constexpr (NT == 8) SOLA_PRODUCT(64, type, SOLA_NAMES_32, "%32", "%33", "%34");                      \
  if constexpr (NT == 16) SOLA_PRODUCT(128, type, SOLA_NAMES_64, "%64", "%65", "%66")
#define SOLA_PRODUCTS_OF_REGISTERS(type, across)                                                          \
  if constexpr (NT == 4)                                                                                  \
    SOLA_PRODUCT_OF_REGISTERS(32, type, across, SOLA_NAMES_16, "%16, %17, %18, %19", "%20");              \
  if constexpr (NT == 8)                                                                                  \
    SOLA_PRODUCT_OF_REGISTERS(64, type, across, SOLA_NAMES_32, "%32, %33, %34, %35", "%36");              \
  if constexpr (NT == 12)                                                                                 \
    SOLA_PRODUCT_OF_REGISTERS(96, type, across, SOLA_NAMES_48, "%48, %49, %50, %51", "%52");              \
  if constexpr (NT == 16)                                                                                 \
    SOLA_PRODUCT_OF_REGISTERS(128, type, across, SOLA_NAMES_64, "%64, %65, %66, %67", "%68");             \
  if constexpr (NT == 24)                                                                                 \
    SOLA_PRODUCT_OF_REGISTERS(192, type, across, SOLA_NAMES_96, "%96, %97, %98, %99", "%100")
// clang-format on

// sums (64 × 8·NT of a warpgroup) += left (64 × 16) · right (16 × 8·NT), or = without `adds`
template <class In, int NT>
SOLA_DEVICE void product_of_tiles(float (&sums)[NT][4], uint64_t left, uint64_t right, bool adds) {
  static_assert(NT == 4 || NT == 8 || NT == 16);
  if constexpr (std::is_same_v<In, Bf16>) {
    SOLA_PRODUCTS("bf16");
  } else {
    SOLA_PRODUCTS("f16");
  }
}
template <class In, Along along, int NT>
SOLA_DEVICE void product_of_registers(float (&sums)[NT][4], const uint32_t (&left)[4], uint64_t right) {
  static_assert(NT == 4 || NT == 8 || NT == 12 || NT == 16 || NT == 24);
  constexpr bool bf16 = std::is_same_v<In, Bf16>;
  if constexpr (bf16 && along == Along::other) {
    SOLA_PRODUCTS_OF_REGISTERS("bf16", "1");
  } else if constexpr (bf16) {
    SOLA_PRODUCTS_OF_REGISTERS("bf16", "0");
  } else if constexpr (along == Along::other) {
    SOLA_PRODUCTS_OF_REGISTERS("f16", "1");
  } else {
    SOLA_PRODUCTS_OF_REGISTERS("f16", "0");
  }
}

#undef SOLA_FOUR
#undef SOLA_SIXTEEN
#undef SOLA_SUMS_32
#undef SOLA_SUMS_64
#undef SOLA_SUMS_96
#undef SOLA_SUMS_128
#undef SOLA_SUMS_192
#undef SOLA_NAMES_16
#undef SOLA_NAMES_32
#undef SOLA_NAMES_48
#undef SOLA_NAMES_64
#undef SOLA_NAMES_80
#undef SOLA_NAMES_96
#undef SOLA_PRODUCT
#undef SOLA_PRODUCT_OF_REGISTERS
#undef SOLA_PRODUCTS
#undef SOLA_PRODUCTS_OF_REGISTERS

#else

using simt::arrive_warpgroup, simt::commit_products, simt::publish_to_tensor_cores, simt::wait_products;

template <class T, int count>
void hold(T (&)[count][4]) {}
template <class In, int NT>
void product_of_tiles(float (&sums)[NT][4], uint64_t left, uint64_t right, bool adds) {
  simt::start_product(std::is_same_v<In, Bf16>, sums[0], 8 * NT, left, right, adds);
}
template <class In, Along along, int NT>
void product_of_registers(float (&sums)[NT][4], const uint32_t (&left)[4], uint64_t right) {
  simt::start_product(std::is_same_v<In, Bf16>, sums[0], 8 * NT, left, right, along == Along::other);
}

#endif

}  // namespace sola::cuda
