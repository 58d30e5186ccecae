// picks the compiled instruction set and the bfloat16 GEMM once, when the first op runs

#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace sola {

namespace baseline {
extern const Kernels table;
}

namespace {

struct Candidate {
  const Kernels& kernels;
  std::string refusal;
};

}  // namespace

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

std::string missing(bool supported) { return supported ? "" : "this processor lacks the instructions"; }

// best first
std::vector<Candidate> candidates() {
  __builtin_cpu_init();
  return {{avx512::table, missing(has_avx512())}, {avx2::table, missing(has_avx2())}, {baseline::table, ""}};
}

}  // namespace

#else

namespace {
std::vector<Candidate> candidates() { return {{baseline::table, ""}}; }
}  // namespace

#endif

namespace {

const Kernels& choose() {
  const char* variable = std::getenv("SOLA_ISA");
  const std::string wish = variable == nullptr ? "" : variable;
  std::string known;
  for (const Candidate& candidate : candidates()) {
    if (wish.empty() ? candidate.refusal.empty() : candidate.kernels.name == wish) {
      if (candidate.refusal.empty()) return candidate.kernels;
      throw std::runtime_error("SOLA_ISA=" + wish + ": " + candidate.refusal);
    }
    known += (known.empty() ? "" : ", ") + std::string(candidate.kernels.name);
  }
  throw std::runtime_error("SOLA_ISA=" + wish + " names no instruction set; known: " + known);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

std::vector<Choice> instruction_sets() {
  std::vector<Choice> found;
  for (const Candidate& candidate : candidates()) {
    found.push_back({candidate.kernels.name, candidate.refusal, &candidate.kernels == &kernels()});
  }
  return found;
}

}  // namespace sola
