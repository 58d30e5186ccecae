// what was built, what was chosen at load, and what this machine has
#pragma once

#include <map>
#include <string>
#include <variant>
#include <vector>

namespace sola {

std::map<std::string, std::string> build_info();

// one entry per CUDA device that a build with CUDA sees
using Property = std::variant<std::string, long long>;
std::vector<std::map<std::string, Property>> cuda_devices();

}  // namespace sola
