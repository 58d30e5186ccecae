// what newer devices can do, and which of it kernels may use: on, unless somebody switched it off
#pragma once

#include <string>
#include <vector>

namespace sola {

// thread-block clusters, asynchronous products of warpgroups, programmatic dependent launch, and more shared memory for
// a block than every device has
enum class CudaFeature { clusters, wgmma, pdl, shared };
constexpr const char* kCudaFeatures[] = {"clusters", "wgmma", "pdl", "shared"};

bool may_use(CudaFeature feature);

// by name, for the whole process: backward passes and compiled graphs run on threads of their own
std::vector<std::string> cuda_features_off();
// in the place of what was off before; throws std::invalid_argument on an unknown name
void switch_cuda_features_off(const std::vector<std::string>& names);

}  // namespace sola
