// feature maps of many numbers at a time
#pragma once

#include "cuda/tile.cuh"

namespace sola::cuda {

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
