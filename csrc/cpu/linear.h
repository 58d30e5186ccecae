// what the two linear-attention kernels share
#pragma once

#include <type_traits>

#include "cpu/tiles.h"

namespace sola::SOLA_ISA {

// calls f(std::integral_constant<FeatureMap, map>{}), so that loops over elements carry no branch
template <class F>
SOLA_INLINE void with_map(FeatureMap map, F&& f) {
  switch (map) {
    case FeatureMap::elu1:
      return f(std::integral_constant<FeatureMap, FeatureMap::elu1>{});
    case FeatureMap::relu:
      return f(std::integral_constant<FeatureMap, FeatureMap::relu>{});
    case FeatureMap::identity:
      return f(std::integral_constant<FeatureMap, FeatureMap::identity>{});
    case FeatureMap::exp:
      return f(std::integral_constant<FeatureMap, FeatureMap::exp>{});
  }
}

// φ(x); comparisons are written so that NaN stays NaN. kRough: the result will be rounded to half precision or meets
// operands that were
template <FeatureMap map, bool kRough, class V>
SOLA_INLINE V feature(V x) {
  const V zero{};
  if constexpr (map == FeatureMap::elu1) {
    const V negative = x > zero ? zero : x;
    return (x > zero ? x : zero) + vexp_negative<kRough>(negative);
  }
  if constexpr (map == FeatureMap::relu) return x < zero ? zero : x;
  if constexpr (map == FeatureMap::exp) return vexp(x);
  return x;
}

// φ′(x) as a function of φ(x): ELU + 1 exceeds 1 exactly where its slope is 1
template <FeatureMap map, class V>
SOLA_INLINE V feature_slope(V phi) {
  const V zero{}, one = zero + 1;
  if constexpr (map == FeatureMap::elu1) return phi > one ? one : phi;
  if constexpr (map == FeatureMap::relu) return phi > zero ? one : zero;
  if constexpr (map == FeatureMap::exp) return phi;
  return one;
}

// numbers as a product in the type Mul sees them, so that numerators and normalisers are made of the same ones
template <class Mul, class V>
SOLA_INLINE V as_multiplied(V x) {
  if constexpr (is_bf16<Mul>) return round_to_bf16(x);
  return x;
}

template <class Mul, class A>
void round_row(const A* from, A* to, int64_t padded) {
  for (int64_t i = 0; i < padded; i += kLanes<A>) store(to + i, as_multiplied<Mul>(load(from + i)));
}

// rows of φ(from), padded with zeros to `padded` columns, a multiple of the lanes; asks for the row `ahead` rows on
template <class Mul, class From>
void map_rows(FeatureMap map, const From* from, int64_t stride, int64_t rows, int64_t columns, Acc<From>* to,
              int64_t padded, int64_t ahead = 0) {
  using A = Acc<From>;
  constexpr int L = kLanes<A>;
  // vectors in flight: a long dependent chain each, and loads that must not wait for the stores of their neighbours
  constexpr int kFlight = 4;
  constexpr bool kRough = sizeof(From) == 2;
  with_map(map, [&](auto chosen) SOLA_LAMBDA {
    const auto mapped = [&](Vec<A> x) SOLA_LAMBDA { return as_multiplied<Mul>(feature<chosen(), kRough>(x)); };
    for (int64_t r = 0; r < rows; ++r) {
      const From* row = from + r * stride;
      if (ahead) prefetch_rows(row + ahead * stride, stride, 1, columns);
      A* out = to + r * padded;
      int64_t i = 0;
      for (; i + kFlight * L <= columns; i += kFlight * L) {
        Vec<A> x[kFlight];
#pragma GCC unroll 8
        for (int j = 0; j < kFlight; ++j) x[j] = load(row + i + j * L);
#pragma GCC unroll 8
        for (int j = 0; j < kFlight; ++j) x[j] = mapped(x[j]);
#pragma GCC unroll 8
        for (int j = 0; j < kFlight; ++j) store(out + i + j * L, x[j]);
      }
      for (; i + L <= columns; i += L) store(out + i, mapped(load(row + i)));
      if (i < columns) {
        fill(out + i, padded - i, A(0));
        store_part(out + i, mapped(load_part(row + i, columns - i)), columns - i);
      }
    }
  });
}

// rows of grad · φ′, given φ, written to the caller's tensor
template <class To>
void store_mapped_gradient(FeatureMap map, Acc<To>* grad, const Acc<To>* phi, int64_t rows, int64_t columns,
                           int64_t padded, To* to, int64_t stride) {
  using A = Acc<To>;
  with_map(map, [&](auto chosen) SOLA_LAMBDA {
    for (int64_t r = 0; r < rows; ++r) {
      A* row = grad + r * padded;
      for (int64_t i = 0; i < padded; i += kLanes<A>) {
        store(row + i, load(row + i) * feature_slope<chosen()>(load(phi + r * padded + i)));
      }
      convert_row(row, columns, to + r * stride, columns);
    }
  });
}

// row · factor, and the factor itself: 1/(sum + eps), where 0 stands for an undefined quotient
template <class A>
SOLA_INLINE A reciprocal(A denominator) {
  return denominator == A(0) ? A(0) : A(1) / denominator;
}

template <class A>
SOLA_INLINE void scale_row(A* row, int64_t padded, A factor) {
  for (int64_t i = 0; i < padded; i += kLanes<A>) store(row + i, load(row + i) * factor);
}

// to += factor · from
template <class A>
SOLA_INLINE void add_row(const A* from, A* to, int64_t padded, A factor) {
  for (int64_t i = 0; i < padded; i += kLanes<A>) store(to + i, load(to + i) + load(from + i) * factor);
}

// to += Σ_r coefficients_r · row_r, coefficients 1 if null. The rows are summed up by themselves: added one by one, a
// sum over many tokens would round each of them
template <class A>
void add_rows(const A* rows, int64_t count, const A* coefficients, A* to, int64_t padded) {
  // sums in flight, since each waits for its last addition
  constexpr int64_t kFlight = 4;
  for (int64_t i = 0; i < padded; i += kLanes<A>) {
    Vec<A> sums[kFlight] = {};
    int64_t r = 0;
    for (; r + kFlight <= count; r += kFlight) {
#pragma GCC unroll 4
      for (int64_t j = 0; j < kFlight; ++j) {
        sums[j] += load(rows + (r + j) * padded + i) * (coefficients ? coefficients[r + j] : A(1));
      }
    }
    for (; r < count; ++r) sums[0] += load(rows + r * padded + i) * (coefficients ? coefficients[r] : A(1));
    store(to + i, load(to + i) + ((sums[0] + sums[1]) + (sums[2] + sums[3])));
  }
}

}  // namespace sola::SOLA_ISA
