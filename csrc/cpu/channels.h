// the channels of a token, vector by vector; only *.kernel.cpp includes it
#pragma once

#include <type_traits>

#include "cpu/vec.h"

namespace sola::SOLA_ISA {

// f(whether a vector is whole, its first channel, channels that it has)
template <class A, class F>
SOLA_INLINE void for_vectors(int64_t channels, const F& f) {
  constexpr int64_t L = kLanes<A>;
  int64_t c = 0;
  for (; c + L <= channels; c += L) f(std::true_type{}, c, L);
  if (c < channels) f(std::false_type{}, c, channels - c);
}

// n channels of such a vector
template <bool whole, class T>
SOLA_INLINE Vec<Acc<T>> read(const T* p, int64_t n) {
  return whole ? load(p) : load_part(p, n);
}
template <bool whole, class T>
SOLA_INLINE void write(T* p, Vec<Acc<T>> x, int64_t n) {
  if (whole) {
    store(p, x);
  } else {
    store_part(p, x, n);
  }
}

}  // namespace sola::SOLA_ISA
