// ranges of the tokens of one head, and feature maps of many of their numbers at a time
#pragma once

#include "cuda/tile.cuh"

namespace sola::cuda {

template <class In>
constexpr Dtype kDtype = !is_half<In>               ? Dtype::f32
                         : std::is_same_v<In, Bf16> ? Dtype::bf16
                                                    : Dtype::f16;

// the tokens of a head that a block owns; they are counted from the first of them on
struct TokenRange {
  int64_t head, batch, begin, tokens;
};

// range `index` of those that cut all heads into `ranges` each
template <class Params>
SOLA_DEVICE TokenRange range_of(const Params& p, int64_t index) {
  const int64_t head = index / p.ranges, begin = index % p.ranges * p.per_range;
  return {head, head / p.heads, begin, max(int64_t(0), min(p.per_range, p.tokens - begin))};
}

// their rows, or some columns of them
template <class T>
struct HeadRows {
  T* data;
  int64_t stride, tokens;
  int columns;
  bool
      vectorial;  // whether 16 bytes can be moved at a time; the same for all threads, so that branches by it are cheap

  SOLA_DEVICE HeadRows(const View& view, const TokenRange& at, int64_t heads, int64_t first_column, int64_t columns)
      : data(row_of<T>(view, at.batch, at.begin, at.head % heads) + first_column),
        stride(view.token),
        tokens(at.tokens),
        columns(int(columns)),
        vectorial(is_vectorial(data, stride, this->columns)) {}

  SOLA_DEVICE T* at(int64_t token) const { return data + token * stride; }

  // f(true_type) or f(false_type), as rows are vectorial
  template <class F>
  SOLA_DEVICE void with_vectorial(const F& f) const {
    if (vectorial) {
      f(std::true_type{});
    } else {
      f(std::false_type{});
    }
  }
};

// f(integral_constant of the map): many numbers ask once which it is
template <class F>
SOLA_DEVICE void with_map(FeatureMap map, const F& f) {
  switch (map) {
    case FeatureMap::elu1:
      return f(std::integral_constant<FeatureMap, FeatureMap::elu1>{});
    case FeatureMap::relu:
      return f(std::integral_constant<FeatureMap, FeatureMap::relu>{});
    case FeatureMap::exp:
      return f(std::integral_constant<FeatureMap, FeatureMap::exp>{});
    default:
      return f(std::integral_constant<FeatureMap, FeatureMap::identity>{});
  }
}

// x to φ(x)
template <bool kRough, int count>
SOLA_DEVICE void map_features(FeatureMap map, float (&x)[count]) {
  with_map(map, [&](auto constant) {
#pragma unroll
    for (int i = 0; i < count; ++i) x[i] = feature<kRough>(decltype(constant)::value, x[i]);
  });
}

// numbers times φ′
template <int count>
SOLA_DEVICE void multiply_slopes(FeatureMap map, const float (&phi)[count], float (&numbers)[count]) {
  with_map(map, [&](auto constant) {
#pragma unroll
    for (int i = 0; i < count; ++i) numbers[i] *= feature_slope(decltype(constant)::value, phi[i]);
  });
}

}  // namespace sola::cuda
