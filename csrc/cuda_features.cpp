#include "cuda_features.h"

#include <algorithm>
#include <atomic>
#include <iterator>
#include <stdexcept>

namespace sola {
namespace {

// a bit for every feature
std::atomic<unsigned> off{0};

unsigned bit(size_t feature) { return 1u << feature; }

}  // namespace

bool may_use(CudaFeature feature) { return !(off.load(std::memory_order_relaxed) & bit(static_cast<size_t>(feature))); }

std::vector<std::string> cuda_features_off() {
  const unsigned now = off;
  std::vector<std::string> names;
  for (size_t i = 0; i < std::size(kCudaFeatures); ++i) {
    if (now & bit(i)) names.emplace_back(kCudaFeatures[i]);
  }
  return names;
}

void switch_cuda_features_off(const std::vector<std::string>& names) {
  unsigned wanted = 0;
  for (const std::string& name : names) {
    const auto* found = std::find(std::begin(kCudaFeatures), std::end(kCudaFeatures), name);
    if (found == std::end(kCudaFeatures)) throw std::invalid_argument("no CUDA feature is named " + name);
    wanted |= bit(found - std::begin(kCudaFeatures));
  }
  off = wanted;
}

}  // namespace sola
