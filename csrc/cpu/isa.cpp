// picks the compiled instruction set and the bfloat16 GEMM once, when the first op runs

#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace sola {

namespace baseline {
extern const Kernels table;
}

#if defined(__x86_64__)

namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}

namespace {

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

struct Candidate {
  const Kernels& kernels;
  bool supported;
};

const Kernels& choose() {
  __builtin_cpu_init();
  // best first
  const Candidate candidates[] = {{avx512::table, has_avx512()}, {avx2::table, has_avx2()}, {baseline::table, true}};
  const char* wish = std::getenv("SOLA_ISA");
  const bool free_choice = wish == nullptr || *wish == '\0';
  for (const Candidate& candidate : candidates) {
    if (free_choice ? candidate.supported : candidate.kernels.name == std::string(wish)) {
      if (candidate.supported) return candidate.kernels;
      throw std::runtime_error("SOLA_ISA=" + std::string(wish) + ": this machine lacks these instructions");
    }
  }
  throw std::runtime_error("SOLA_ISA=" + std::string(wish) +
                           " names no instruction set; known: avx512, avx2, baseline");
}

}  // namespace

#else

namespace {
const Kernels& choose() { return baseline::table; }
}  // namespace

#endif

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace sola
