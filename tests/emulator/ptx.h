// what instructions of PTX do, for the C++ that ptx.py makes of a kernel; PTX ISA 9.0, "Instruction Set"
//
// Functions have the names of instructions, and their type as a template parameter. Registers are unsigned integers of
// their size, float, double and bool, whatever an instruction takes their bits for.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

namespace simt::ptx {

// a kernel by its address on the host, and what has been made of its PTX
using Entry = void (*)(const unsigned char* params);
struct Kernel {
  const void* kernel;
  std::string name;
  Entry entry;
};
// returns true, to be called where a unit's variables begin
bool know(const std::vector<Kernel>& kernels);
// null where the kernel is a test's own
Entry entry_of(const void* kernel);
std::vector<std::string> never_run();

// the host's address of a number: bytes from it on must lie where they may, and be aligned to their size
const unsigned char* param_at(const unsigned char* params, size_t size, uint64_t address, size_t bytes);
unsigned char* shared_at(uint32_t address, size_t bytes);
unsigned char* memory_at(uint64_t address, size_t bytes);
[[noreturn]] void refuse(const std::string& reason);
// a · b + c, one rounding, towards −∞
float fma_down(float a, float b, float c);

// ---- bits of a register or an immediate, as a number of type T, and back

template <class T, class R>
T as(R bits) {
  if constexpr (sizeof(T) == sizeof(R)) {
    return std::bit_cast<T>(bits);
  } else {
    static_assert(std::is_integral_v<T> && std::is_integral_v<R>, "only integers are cut");
    return static_cast<T>(bits);
  }
}
// loads of small integers fill a larger register with zeros, or copies of their sign
template <class R, class T>
void put(R& to, T number) {
  if constexpr (sizeof(T) == sizeof(R)) {
    to = std::bit_cast<R>(number);
  } else {
    static_assert(std::is_integral_v<T> && std::is_integral_v<R> && sizeof(T) < sizeof(R));
    to = static_cast<R>(number);
  }
}

// ---- integers wrap around

template <class T>
using Bits = std::make_unsigned_t<T>;
template <class T>
using Twice =
    std::conditional_t<sizeof(T) == 2, std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>,
                       std::conditional_t<sizeof(T) == 4, std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>,
                                          std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>>>;

template <class T>
T add(T a, T b) {
  if constexpr (std::is_floating_point_v<T>)
    return a + b;
  else
    return T(Bits<T>(a) + Bits<T>(b));
}
template <class T>
T sub(T a, T b) {
  if constexpr (std::is_floating_point_v<T>)
    return a - b;
  else
    return T(Bits<T>(a) - Bits<T>(b));
}
template <class T>
T mul(T a, T b) {
  return a * b;
}
template <class T>
Twice<T> mul_wide(T a, T b) {
  return Twice<T>(a) * Twice<T>(b);
}
template <class T>
T mul_lo(T a, T b) {
  return T(mul_wide(a, b));
}
template <class T>
T mul_hi(T a, T b) {
  return T(mul_wide(a, b) >> (8 * sizeof(T)));
}
template <class T>
T mad_lo(T a, T b, T c) {
  return add(mul_lo(a, b), c);
}
// without a value for a divisor of zero, where the CPU would stop the process
template <class T>
T div(T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    if (b == 0) return T(-1);
    if (std::is_signed_v<T> && b == T(-1)) return sub(T(0), a);
  }
  return a / b;
}
template <class T>
T rem(T a, T b) {
  return sub(a, mul_lo(div(a, b), b));
}
template <class T>
T shl(T a, uint32_t by) {
  return by < 8 * sizeof(T) ? T(Bits<T>(a) << by) : T(0);
}
template <class T>
T shr(T a, uint32_t by) {
  return by < 8 * sizeof(T) ? T(a >> by) : a < 0 ? T(-1) : T(0);
}
template <class T>
T and_(T a, T b) {
  return a & b;
}
template <class T>
T or_(T a, T b) {
  return a | b;
}
template <class T>
T xor_(T a, T b) {
  return a ^ b;
}
template <class T>
T not_(T a) {
  if constexpr (std::is_same_v<T, bool>)
    return !a;
  else
    return T(~a);
}
template <class T>
T neg(T a) {
  if constexpr (std::is_floating_point_v<T>)
    return -a;
  else
    return sub(T(0), a);
}
template <class T>
T abs(T a) {
  return std::is_floating_point_v<T> ? std::fabs(a) : a < 0 ? neg(a) : a;
}
// `length` bits of a, put into b from `start` on
template <class T>
T bfi(T a, T b, uint32_t start, uint32_t length) {
  const T mask = shl(sub(shl(T(1), length & 0xff), T(1)), start & 0xff);
  return (shl(a, start & 0xff) & mask) | (b & ~mask);
}

// ---- comparisons: without a u at their end they are false where one number is NaN, with it true

template <class T>
bool eq(T a, T b) {
  return a == b;
}
template <class T>
bool ne(T a, T b) {
  return a < b || a > b;
}
template <class T>
bool lt(T a, T b) {
  return a < b;
}
template <class T>
bool le(T a, T b) {
  return a <= b;
}
template <class T>
bool gt(T a, T b) {
  return a > b;
}
template <class T>
bool ge(T a, T b) {
  return a >= b;
}
template <class T>
bool equ(T a, T b) {
  return !ne(a, b);
}
template <class T>
bool neu(T a, T b) {
  return !(a == b);
}
template <class T>
bool ltu(T a, T b) {
  return !(a >= b);
}
template <class T>
bool leu(T a, T b) {
  return !(a > b);
}
template <class T>
bool gtu(T a, T b) {
  return !(a <= b);
}
template <class T>
bool geu(T a, T b) {
  return !(a < b);
}
template <class T>
T selp(T a, T b, bool first) {
  return first ? a : b;
}
// of floats, the number where the other one is NaN
template <class T>
T min(T a, T b) {
  if constexpr (std::is_floating_point_v<T>)
    return std::fmin(a, b);
  else
    return std::min(a, b);
}
template <class T>
T max(T a, T b) {
  if constexpr (std::is_floating_point_v<T>)
    return std::fmax(a, b);
  else
    return std::max(a, b);
}

// ---- floats

template <class T>
T fma_rn(T a, T b, T c) {
  return std::fma(a, b, c);
}
template <class T>
T rcp_rn(T x) {
  return T(1) / x;
}
template <class T>
T sqrt_rn(T x) {
  return std::sqrt(x);
}
template <class T>
T div_rn(T a, T b) {
  return a / b;
}
inline float saturate(float x) { return x > 0.0f ? std::min(x, 1.0f) : 0.0f; }

// ---- memory

template <class T, size_t n>
std::array<T, n> load(const unsigned char* at) {
  std::array<T, n> numbers;
  std::memcpy(numbers.data(), at, sizeof(numbers));
  return numbers;
}
template <class T, size_t n>
void store(unsigned char* at, const std::array<T, n>& numbers) {
  std::memcpy(at, numbers.data(), sizeof(numbers));
}

// ---- what lanes do together

template <bool across>
std::array<uint32_t, 4> ldmatrix(const unsigned char* row) {
  uint32_t r[4];
  across ? load_matrices_transposed(r, row) : load_matrices(r, row);
  return {r[0], r[1], r[2], r[3]};
}
template <void (*product)(float (&)[4], const uint32_t (&)[4], uint32_t, uint32_t)>
std::array<float, 4> mma(const std::array<uint32_t, 4>& a, const std::array<uint32_t, 2>& b,
                         const std::array<float, 4>& c) {
  float sums[4] = {c[0], c[1], c[2], c[3]};
  const uint32_t left[4] = {a[0], a[1], a[2], a[3]};
  product(sums, left, b[0], b[1]);
  return {sums[0], sums[1], sums[2], sums[3]};
}
// all lanes of a warp, each of which may be asked
inline void check_shuffle(uint32_t clamp, uint32_t members) {
  if (clamp != 31 || members != 0xffffffff) refuse("shfl.sync: a part of a warp");
}
inline float shfl_bfly(float x, uint32_t lanes, uint32_t clamp, uint32_t members) {
  check_shuffle(clamp, members);
  return shuffle_xor(x, int(lanes));
}
inline float shfl_idx(float x, uint32_t lane, uint32_t clamp, uint32_t members) {
  check_shuffle(clamp, members);
  return shuffle_from(x, int(lane));
}
inline void cp_async(unsigned char* shared, const void* global, size_t bytes, size_t exist) {
  if (exist != 0 && exist != bytes) refuse("cp.async: a copy that is partly zeros");
  bytes == 16 ? copy_async(shared, global, exist > 0) : copy_two_async(shared, global, exist > 0);
}

}  // namespace simt::ptx
