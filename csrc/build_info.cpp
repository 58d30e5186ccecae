#include "build_info.h"

#include "cpu/parallel.h"

#ifdef SOLA_CUDA_TARGETS
#define SOLA_CUDA
#include "cuda/device.h"
#else
#define SOLA_CUDA_TARGETS
#endif

#define SOLA_TEXT_OF(...) #__VA_ARGS__
#define SOLA_TEXT(...) SOLA_TEXT_OF(__VA_ARGS__)

namespace sola {

std::map<std::string, std::string> build_info() {
#if defined(__clang__)
  const std::string compiler = "Clang " __clang_version__;
#else
  const std::string compiler = "GCC " __VERSION__;
#endif
  return {
      {"version", SOLA_VERSION},
      {"compiler", compiler},
      {"cuda_architectures", SOLA_TEXT(SOLA_CUDA_TARGETS)},
      {"instruction_set", kernels().name},
      {"gemm", "own micro-kernel"},
      {"gemm_bfloat16", native_bf16() ? "oneDNN brgemm" : "own micro-kernel on tiles widened to float"},
  };
}

namespace {

// What may compute softmax attention on CUDA, in the order in which it is asked, and why not. A backend of PyTorch goes
// before our kernel for the (device, head dim, dtype, tokens) where it has been measured faster; nothing has been
// measured.
struct CudaBackend {
  const char* name;
  const char* reason;
};
constexpr CudaBackend kSoftmaxOnCuda[] = {
    {"own kernel", ""},
    {"SDPA flash", "not measured on any device"},
    {"SDPA cuDNN", "not measured on any device"},
    {"SDPA efficient", "not measured on any device"},
};

}  // namespace

std::vector<std::tuple<std::string, std::string, bool, std::string>> backends() {
  std::vector<std::tuple<std::string, std::string, bool, std::string>> found;
  const auto list = [&](const char* kind, const char* variable, const std::vector<Choice>& choices) {
    bool faster = true;
    for (const Choice& choice : choices) {
      faster = faster && !choice.chosen;
      const std::string passed_over = faster ? std::string(variable) + " names another" : "a faster one runs";
      const std::string why = choice.refusal.empty() ? passed_over : choice.refusal;
      found.emplace_back(kind, choice.name, choice.chosen, choice.chosen ? "" : why);
    }
  };
  list("instruction set", "SOLA_ISA", instruction_sets());
  list("GEMM in bfloat16", "SOLA_BF16", bf16_backends());
  const char* unavailable = "this build has no CUDA kernels";
#ifdef SOLA_CUDA
  unavailable = sola_cuda_devices(nullptr, 0) > 0 ? "" : "no CUDA device here";
#endif
  for (const CudaBackend& choice : kSoftmaxOnCuda) {
    const std::string why = *unavailable ? unavailable : choice.reason;
    found.emplace_back("softmax attention on CUDA", choice.name, why.empty(), why);
  }
  return found;
}

std::vector<std::map<std::string, Property>> cuda_devices() {
  std::vector<std::map<std::string, Property>> found;
#ifdef SOLA_CUDA
  for (const auto& d : visible_cuda_devices()) {
    found.push_back({{"name", std::string(d.name)},
                     {"compute_capability", std::to_string(d.major) + "." + std::to_string(d.minor)},
                     {"multiprocessors", static_cast<long long>(d.multiprocessors)},
                     {"memory_bytes", d.memory_bytes},
                     {"l2_bytes", d.l2_bytes},
                     {"shared_bytes_per_multiprocessor", d.shared_bytes_per_multiprocessor}});
  }
#endif
  return found;
}

}  // namespace sola
