// vectors of the instruction set this file is compiled for; only *.kernel.cpp includes it
//
// GCC and Clang vector types instead of intrinsics: the same source gives AVX-512, AVX2, SSE2 and NEON code. Everything
// lives in a namespace named after the instruction set, so that the linker can't merge code of different sets.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef SOLA_ISA
#error "compile with -DSOLA_ISA=<name>: this header belongs to *.kernel.cpp files only"
#endif

#define SOLA_INLINE __attribute__((always_inline)) inline
#if defined(__AVX512F__) || defined(__aarch64__)
#define SOLA_REGISTERS 32
#else
#define SOLA_REGISTERS 16
#endif
#define SOLA_LAMBDA __attribute__((always_inline))

namespace sola::SOLA_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// storage of half-precision numbers; arithmetic happens in float
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
};
template <class T>
using Vec = typename VecOf<T>::type;

template <class T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));

// float for everything but double
template <class T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
template <class T>
using Acc = typename AccOf<T>::type;

using IntVec = Vec<int32_t>;
typedef uint16_t ShortVec __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));

template <class To, class From>
SOLA_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

template <class T>
SOLA_INLINE Vec<T> splat(T value) {
  return value - Vec<T>{};
}

// smallest multiple of a vector's lanes that is at least n
template <class T>
constexpr int64_t round_up(int64_t n) {
  return (n + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

// NaN in either operand may be lost: callers that must keep it see it in a later sum
template <class V>
SOLA_INLINE V vmax(V a, V b) {
  return a > b ? a : b;
}

// ---- half-precision conversions, round to nearest even, NaN stays NaN

// 16-bit numbers with zeros in front, and the low halves of numbers below 2^16; compilers make many steps of what is
// one instruction or two
#if defined(__AVX512F__)
// the plain intrinsics of GCC 12 warn of the register that they write
constexpr __mmask16 kAll = 0xffff;
#endif
SOLA_INLINE Vec<uint32_t> widen_bits(ShortVec bits) {
#if defined(__AVX512F__)
  return bit_cast<Vec<uint32_t>>(_mm512_maskz_cvtepu16_epi32(kAll, bit_cast<__m256i>(bits)));
#elif defined(__AVX2__)
  return bit_cast<Vec<uint32_t>>(_mm256_cvtepu16_epi32(bit_cast<__m128i>(bits)));
#else
  return __builtin_convertvector(bits, Vec<uint32_t>);
#endif
}
SOLA_INLINE ShortVec narrow_bits(Vec<uint32_t> wide) {
#if defined(__AVX512F__)
  return bit_cast<ShortVec>(_mm512_maskz_cvtepi32_epi16(kAll, bit_cast<__m512i>(wide)));
#elif defined(__AVX2__)
  const __m256i both = _mm256_packus_epi32(bit_cast<__m256i>(wide), __m256i{});
  return bit_cast<ShortVec>(_mm256_castsi256_si128(_mm256_permute4x64_epi64(both, 0x08)));
#else
  return __builtin_convertvector(wide, ShortVec);
#endif
}

SOLA_INLINE Vec<float> widen(ShortVec bits, bf16) { return bit_cast<Vec<float>>(widen_bits(bits) << 16); }

SOLA_INLINE ShortVec narrow(Vec<float> x, bf16) {
  auto bits = bit_cast<Vec<uint32_t>>(x);
  auto rounded = (bits + (((bits >> 16) & 1u) + 0x7fffu)) >> 16;
  auto quiet = (bits >> 16) | 0x40u;
  auto is_nan = x != x;
  return narrow_bits(is_nan ? quiet : rounded);
}

// the nearest number that bfloat16 holds, ties away from zero; NaN stays NaN
SOLA_INLINE Vec<float> round_to_bf16(Vec<float> x) {
  const auto bits = (bit_cast<Vec<uint32_t>>(x) + 0x8000u) & 0xffff0000u;
  return x != x ? x : bit_cast<Vec<float>>(bits);
}

#if defined(__AVX512F__)
SOLA_INLINE Vec<float> widen(ShortVec bits, f16) {
  return bit_cast<Vec<float>>(_mm512_maskz_cvtph_ps(kAll, bit_cast<__m256i>(bits)));
}
SOLA_INLINE ShortVec narrow(Vec<float> x, f16) {
  return bit_cast<ShortVec>(_mm512_maskz_cvtps_ph(kAll, bit_cast<__m512>(x), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
SOLA_INLINE Vec<float> widen(ShortVec bits, f16) {
  return bit_cast<Vec<float>>(_mm256_cvtph_ps(bit_cast<__m128i>(bits)));
}
SOLA_INLINE ShortVec narrow(Vec<float> x, f16) {
  return bit_cast<ShortVec>(_mm256_cvtps_ph(bit_cast<__m256>(x), _MM_FROUND_TO_NEAREST_INT));
}
#else
// exponents are moved by a multiplication, which also normalises subnormals; Inf and NaN are patched
SOLA_INLINE Vec<float> widen(ShortVec bits, f16) {
  auto wide = widen_bits(bits);
  auto sign = (wide & 0x8000u) << 16;
  auto magnitude = (wide & 0x7fffu) << 13;
  auto scaled = bit_cast<Vec<uint32_t>>(bit_cast<Vec<float>>(magnitude) * 0x1p112f);
  auto special = magnitude | 0x7f800000u;
  auto is_special = (wide & 0x7c00u) == 0x7c00u;
  return bit_cast<Vec<float>>((is_special ? special : scaled) | sign);
}

SOLA_INLINE ShortVec narrow(Vec<float> x, f16) {
  auto bits = bit_cast<Vec<uint32_t>>(x);
  auto sign = (bits >> 16) & 0x8000u;
  auto magnitude = bits & 0x7fffffffu;
  // normal results: re-bias the exponent and round on the 13 bits that fall away
  auto normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // below 2^-14 the addition of 0.5 rounds to a multiple of 2^-24 in the low bits of the sum
  auto tiny = bit_cast<Vec<uint32_t>>(bit_cast<Vec<float>>(magnitude) + 0.5f) - 0x3f000000u;
  auto result = magnitude < 0x38800000u ? tiny : normal;
  result = magnitude >= 0x477ff000u ? (Vec<uint32_t>{} + 0x7c00u) : result;
  result = magnitude > 0x7f800000u ? (Vec<uint32_t>{} + 0x7e00u) : result;
  return narrow_bits(result | sign);
}
#endif

// ---- loads and stores, converting to and from the arithmetic type

template <class T>
SOLA_INLINE Vec<Acc<T>> load(const T* p) {
  if constexpr (sizeof(T) == 2) {
    return widen(*reinterpret_cast<const ShortVec*>(p), T{});
  } else {
    return *reinterpret_cast<const Vec<T>*>(p);
  }
}

template <class T>
SOLA_INLINE void store(T* p, Vec<Acc<T>> x) {
  if constexpr (sizeof(T) == 2) {
    *reinterpret_cast<ShortVec*>(p) = narrow(x, T{});
  } else {
    *reinterpret_cast<Vec<T>*>(p) = x;
  }
}

// the first n < lanes elements; the rest reads as zero and is not written
template <class T>
SOLA_INLINE Vec<Acc<T>> load_part(const T* p, int64_t n) {
  T lanes[kLanes<Acc<T>>] = {};
  std::memcpy(lanes, p, n * sizeof(T));
  return load(lanes);
}

template <class T>
SOLA_INLINE void store_part(T* p, Vec<Acc<T>> x, int64_t n) {
  T lanes[kLanes<Acc<T>>];
  store(lanes, x);
  std::memcpy(p, lanes, n * sizeof(T));
}

// ---- reductions over the lanes, by halves

template <class T, int Bytes>
struct Halves {
  typedef T Half __attribute__((vector_size(Bytes / 2)));
  Half low, high;
};

template <class T, int Bytes, class V, class Op>
SOLA_INLINE T fold(V x, Op op) {
  if constexpr (Bytes == sizeof(T)) {
    return x[0];
  } else {
    auto halves = bit_cast<Halves<T, Bytes>>(x);
    return fold<T, Bytes / 2>(op(halves.low, halves.high), op);
  }
}

template <class T>
SOLA_INLINE T sum(Vec<T> x) {
  return fold<T, kVectorBytes>(x, [](auto a, auto b) SOLA_LAMBDA { return a + b; });
}

template <class T>
SOLA_INLINE T max(Vec<T> x) {
  return fold<T, kVectorBytes>(x, [](auto a, auto b) SOLA_LAMBDA { return a > b ? a : b; });
}

// ---- exp and log

// e^x in float: x = n·ln2 + r with |r| ≤ ln2/2, subtracted in two steps; e^r by a degree-6 minimax polynomial
// (relative error 3e-9); below 2^-125 gives 0, above the largest number Inf, NaN stays
SOLA_INLINE Vec<float> vexp(Vec<float> x) {
  constexpr float kMagic = 0x1.8p23f;  // adding it leaves the nearest integer in the low mantissa bits
  Vec<float> shifted = x * 0x1.715476p+0f + kMagic;
  Vec<float> n = shifted - kMagic;
  Vec<float> r = x - n * 0x1.62cp-1f;
  r = r - n * 0x1.217f7ep-12f;
  Vec<float> p = r * 0x1.6a2352p-10f + 0x1.123a6cp-7f;
  p = p * r + 0x1.5558f4p-5f;
  p = p * r + 0x1.555490p-3f;
  p = p * r + 0x1.fffffcp-2f;
  p = p * (r * r) + r;
  p = p + 1.0f;
  // 2·2^(n-1): n reaches 128, whose exponent alone would be Inf
  IntVec exponent = bit_cast<IntVec>(shifted) - bit_cast<int32_t>(kMagic) + 126;
  Vec<float> result = (p + p) * bit_cast<Vec<float>>(exponent << 23);
  result = x < -86.6f ? splat<float>(0) : result;
  return x > 88.72283f ? splat<float>(INFINITY) : result;
}

// adding it leaves the nearest integer in the low mantissa bits
constexpr float kRounder = 0x1.8p23f;

// 2^(n + r) with |r| ≤ ½ and n in the low bits of `shifted` = n + kRounder, by a minimax polynomial of degree 6
// (relative error 3e-9), or 4 (4e-6) where the result is rounded to half precision
template <bool kRough>
SOLA_INLINE Vec<float> exp2_of_sum(Vec<float> shifted, Vec<float> r) {
  Vec<float> p;
  if constexpr (kRough) {
    p = r * 0x1.4093fcp-7f + 0x1.ca9228p-5f;
    p = p * r + 0x1.ebf1aap-3f;
    p = p * r + 0x1.62dfc4p-1f;
  } else {
    p = r * 0x1.470d74p-13f + 0x1.5f737ep-10f;
    p = p * r + 0x1.3b270ap-7f;
    p = p * r + 0x1.c6ae70p-5f;
    p = p * r + 0x1.ebfbe2p-3f;
    p = p * r + 0x1.62e432p-1f;
  }
  p = p * r + 1.0f;
  return p * bit_cast<Vec<float>>((bit_cast<IntVec>(shifted) + (127 - bit_cast<int32_t>(kRounder))) << 23);
}

// A product as it is rounded: the compiler makes no multiply-add of it. Where large numbers are subtracted, equal ones
// must give 0, and the rounding of one of them would be large.
template <class V>
SOLA_INLINE V rounded(V product) {
#if defined(__AVX512F__)
  asm("" : "+v"(product));
#elif defined(__x86_64__)
  asm("" : "+x"(product));
#elif defined(__aarch64__)
  asm("" : "+w"(product));
#endif
  return product;
}

// 2^x for x up to 126, in float; below 2^-126.5 gives exactly 0, NaN stays
template <bool kRough>
SOLA_INLINE Vec<float> vexp2(Vec<float> x) {
  // in this order NaN passes; -127 makes the exponent bits zero
  x = -127.0f > x ? splat<float>(-127.0f) : x;
  const Vec<float> shifted = x + kRounder;
  return exp2_of_sum<kRough>(shifted, x - (shifted - kRounder));
}

// e^x for x ≤ 0, in float; as 2^(x·log₂e) with the product's rounding error carried along (where the compiler fuses
// it: 2 units of the last place; else the error is |x|·2^-24), unless kRough (4e-6); below −87.5 gives exactly 0, NaN
// stays
template <bool kRough>
SOLA_INLINE Vec<float> vexp_negative(Vec<float> x) {
  constexpr float kLog2e = 0x1.715476p+0f, kLog2eRest = 0x1.4ae0cp-26f;
  x = -88.0f > x ? splat<float>(-88.0f) : x;
  const Vec<float> y = x * kLog2e;
  const Vec<float> shifted = y + kRounder;
  const Vec<float> n = shifted - kRounder;
  // fused: x·log₂e − n without the rounding of y
  const Vec<float> r = kRough ? y - n : (x * kLog2e - n) + x * kLog2eRest;
  return exp2_of_sum<kRough>(shifted, r);
}

template <bool>
SOLA_INLINE Vec<double> vexp_negative(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = ::exp(x[i]);
  return x;
}

template <bool>
SOLA_INLINE Vec<double> vexp2(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = ::exp2(x[i]);
  return x;
}

// log x in float for normal x > 0: x = 2^n·m with m in [√½, √2), log m = 2 atanh s with s = (m−1)/(m+1), a
// minimax polynomial in s² (relative error 8e-10); 0 gives −Inf, NaN and Inf stay
SOLA_INLINE Vec<float> vlog(Vec<float> x) {
  IntVec bits = bit_cast<IntVec>(x);
  IntVec whole = (bits - 0x3f3504f3) >> 23;
  Vec<float> m = bit_cast<Vec<float>>(bits - (whole << 23));
  Vec<float> n = __builtin_convertvector(whole, Vec<float>);
  Vec<float> s = (m - 1.0f) / (m + 1.0f);
  Vec<float> t = s * s;
  Vec<float> p = t * 0x1.31e678p-2f + 0x1.995e9cp-2f;
  p = p * t + 0x1.55557ap-1f;
  Vec<float> log_m = s * (p * t) + (s + s);
  Vec<float> result = n * 0x1.62cp-1f + (n * 0x1.217f7ep-12f + log_m);
  result = x == 0.0f ? splat<float>(-INFINITY) : result;
  return x < INFINITY ? result : x;
}

SOLA_INLINE Vec<double> vexp(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = ::exp(x[i]);
  return x;
}

SOLA_INLINE Vec<double> vlog(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = ::log(x[i]);
  return x;
}

}  // namespace sola::SOLA_ISA
