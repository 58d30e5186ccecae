// what was built, what was chosen at load, and what this machine has
#pragma once

#include <map>
#include <string>
#include <tuple>
#include <variant>
#include <vector>

namespace sola {

std::map<std::string, std::string> build_info();

// every way to run: kind (instruction set, GEMM in bfloat16), name, whether it was chosen, and if not, why
std::vector<std::tuple<std::string, std::string, bool, std::string>> backends();

// one entry per CUDA device that a build with CUDA sees
using Property = std::variant<std::string, long long>;
std::vector<std::map<std::string, Property>> cuda_devices();

}  // namespace sola
