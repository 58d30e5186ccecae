#include "build_info.h"

#include "cpu/parallel.h"
#include "softmax_routes.h"

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
      {"torch", SOLA_TORCH},
      {"compiler", compiler},
      {"cuda_architectures", SOLA_TEXT(SOLA_CUDA_TARGETS)},
      {"instruction_set", kernels().name},
      {"gemm", "own micro-kernel"},
      {"gemm_bfloat16", native_bf16() ? "oneDNN brgemm" : "own micro-kernel on tiles widened to float"},
  };
}

namespace {

using Backends = std::vector<std::tuple<std::string, std::string, bool, std::string>>;

const char* title_of(SoftmaxBackend backend) {
  constexpr const char* kTitles[] = {"", "own kernel", "SDPA flash", "SDPA cuDNN", "SDPA efficient"};
  return kTitles[static_cast<int>(backend)];
}

// The routes of softmax attention in the order in which they are asked, then the backends that no route names.
void list_softmax(const std::string& unavailable, Backends& found) {
  const char* kind = "softmax attention on CUDA";
  const SoftmaxBackend pin = pinned_softmax_backend();
  const auto list = [&](SoftmaxBackend backend, const std::string& name, const char* passed_over) {
    std::string why = unavailable;
    if (why.empty() && pin != backend) why = pin == SoftmaxBackend::automatic ? passed_over : "another is asked for";
    found.emplace_back(kind, name, why.empty(), why);
  };
  bool named[std::size(kSoftmaxBackends)] = {true};
  for (const SoftmaxRoute& route : softmax_routes()) {
    const std::string calls = describe(route);
    named[static_cast<int>(route.backend)] = true;
    list(route.backend, title_of(route.backend) + (calls == "everything" ? "" : " for " + calls), "");
  }
  for (size_t i = 0; i < std::size(named); ++i) {
    const auto backend = static_cast<SoftmaxBackend>(i);
    if (!named[i]) list(backend, title_of(backend), "no measurement puts it before another");
  }
}

}  // namespace

Backends backends() {
  Backends found;
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
#ifdef SOLA_CUDA
  list_softmax(sola_cuda_devices(nullptr, 0) > 0 ? "" : "no CUDA device here", found);
#else
  list_softmax("this build has no CUDA kernels", found);
#endif
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
