// number types: what lies in memory (In), what is multiplied (Mul), and vectors of 16 bytes
#pragma once

#include <type_traits>

#include "cuda/primitives.cuh"
#include "params.h"

namespace sola::cuda {

template <class T>
constexpr bool is_half = sizeof(T) == 2;
// what tensor cores multiply
template <class T>
constexpr bool is_rounded = !std::is_same_v<T, float>;

SOLA_DEVICE float to_float(float x) { return x; }
SOLA_DEVICE float to_float(Tf32 x) { return x.value; }
SOLA_DEVICE float to_float(Bf16 x) { return bits_to_float(uint32_t(x.bits) << 16); }
SOLA_DEVICE float to_float(Half x) { return half_to_float(x.bits); }

template <class T>
SOLA_DEVICE T from_float(float x);
template <>
SOLA_DEVICE float from_float<float>(float x) {
  return x;
}
template <>
SOLA_DEVICE Tf32 from_float<Tf32>(float x) {
  return {round_tf32(x)};
}
template <>
SOLA_DEVICE Bf16 from_float<Bf16>(float x) {
  return {uint16_t(pack_bf16(x, 0.0f))};
}
template <>
SOLA_DEVICE Half from_float<Half>(float x) {
  return {uint16_t(pack_half(x, 0.0f))};
}

template <class T>
SOLA_DEVICE uint32_t pack(float low, float high);
template <>
SOLA_DEVICE uint32_t pack<Bf16>(float low, float high) {
  return pack_bf16(low, high);
}
template <>
SOLA_DEVICE uint32_t pack<Half>(float low, float high) {
  return pack_half(low, high);
}

// numbers in 16 bytes
template <class T>
constexpr int kVector = 16 / int(sizeof(T));

SOLA_DEVICE uint32_t raw_bits(float x) { return float_to_bits(x); }
SOLA_DEVICE uint32_t raw_bits(Bf16 x) { return x.bits; }
SOLA_DEVICE uint32_t raw_bits(Half x) { return x.bits; }

template <class T>
SOLA_DEVICE void unpack(const Vec4& raw, float (&to)[kVector<T>]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      to[i] = bits_to_float(raw.word[i]);
    } else {
      to[2 * i] = to_float(T{uint16_t(raw.word[i])});
      to[2 * i + 1] = to_float(T{uint16_t(raw.word[i] >> 16)});
    }
  }
}

// as many numbers as 16 bytes hold, from `from` on
template <class T>
SOLA_DEVICE Vec4 pack_vector(const float* from) {
  Vec4 raw;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if constexpr (sizeof(T) == 4) {
      raw.word[j] = float_to_bits(to_float(from_float<T>(from[j])));
    } else {
      raw.word[j] = pack<T>(from[2 * j], from[2 * j + 1]);
    }
  }
  return raw;
}

// `count` numbers, a multiple of 4 (32-bit) or 2 (16-bit); `to` is aligned to their size or to 16 bytes
template <class T, int count>
SOLA_DEVICE void store_vector(const float (&from)[count], T* to) {
  if constexpr (count % kVector<T> == 0) {
#pragma unroll
    for (int i = 0; i < count; i += kVector<T>) store_vec4(to + i, pack_vector<T>(from + i));
  } else {
#pragma unroll
    for (int j = 0; j < count; j += 2) *reinterpret_cast<uint32_t*>(to + j) = pack<T>(from[j], from[j + 1]);
  }
}
// whole vectors to global memory
template <class T, int count>
SOLA_DEVICE void write_vector(const float (&from)[count], T* to) {
  static_assert(count % kVector<T> == 0);
#pragma unroll
  for (int i = 0; i < count; i += kVector<T>) write_vec4(to + i, pack_vector<T>(from + i));
}

// numbers of the type that is multiplied whose sum is a float
template <class Mul>
constexpr int kParts = is_rounded<Mul> ? 3 : 1;
template <class Mul>
SOLA_DEVICE void store_parts(float x, Mul* to) {
#pragma unroll
  for (int part = 0; part < kParts<Mul>; ++part) {
    to[part] = from_float<Mul>(x);
    x -= to_float(to[part]);
  }
}

// two neighbours in shared memory, the first in an even place
template <class T>
SOLA_DEVICE void load_two(const T* from, float (&to)[2]) {
  if constexpr (sizeof(T) == 2) {
    const uint32_t word = *reinterpret_cast<const uint32_t*>(from);
    to[0] = to_float(T{uint16_t(word)});
    to[1] = to_float(T{uint16_t(word >> 16)});
  } else {
    to[0] = to_float(from[0]);
    to[1] = to_float(from[1]);
  }
}

// first element of a (batch, token, head) row; offsets in 64 bits
template <class T>
SOLA_DEVICE T* row_of(const View& view, int64_t batch, int64_t token, int64_t head) {
  return static_cast<T*>(view.data) + batch * view.batch + token * view.token + head * view.head;
}

// whether rows of `columns` numbers, `stride` apart, can be read 16 bytes at a time
template <class T>
SOLA_DEVICE bool is_vectorial(const T* rows, int64_t stride, int columns) {
  return (reinterpret_cast<uintptr_t>(rows) | uintptr_t(stride * int64_t(sizeof(T))) | uintptr_t(columns * sizeof(T))) %
             16 ==
         0;
}

}  // namespace sola::cuda
