// feature maps by name
#pragma once

#include <c10/util/Exception.h>
#include <c10/util/string_view.h>

#include "params.h"

namespace sola {

inline FeatureMap parse_feature_map(const char* op, c10::string_view name) {
  if (name == "elu1") return FeatureMap::elu1;
  if (name == "relu") return FeatureMap::relu;
  if (name == "identity") return FeatureMap::identity;
  if (name == "exp") return FeatureMap::exp;
  TORCH_CHECK_VALUE(false, op, ": feature_map must be one of elu1, relu, identity, exp, got ", name);
}

}  // namespace sola
