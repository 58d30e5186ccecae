// whether bfloat16 tiles run on oneDNN's brgemm, which is faster than float only where the machine multiplies bfloat16

#include <ATen/native/CPUBlas.h>

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/parallel.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace sola {
namespace {

void brgemm(int64_t M, int64_t N, int64_t K, int64_t lda, int64_t ldb, int64_t ldc, bool add, const void* a,
            const void* b, float* c) {
  at::native::cpublas::brgemm(M, N, K, lda, ldb, ldc, add, static_cast<const at::BFloat16*>(a),
                              static_cast<const at::BFloat16*>(b), c);
}

#if defined(__x86_64__)
// one small product; empty if it comes out right (torch has no other question that tells whether brgemm would throw)
std::string try_brgemm() {
  constexpr int64_t M = 2, N = 16, K = 2;
  constexpr uint16_t kOne = 0x3f80;
  const std::vector<uint16_t> a(M * K, kOne), b(K * N, kOne);
  std::vector<float> c(M * N, 0.0f);
  try {
    brgemm(M, N, K, K, N, N, false, a.data(), b.data(), c.data());
    at::native::cpublas::brgemm_release();
  } catch (const std::exception& error) {
    return "this torch refuses it: " + std::string(error.what()).substr(0, 80);
  }
  return c == std::vector<float>(M * N, float(K)) ? "" : "this torch gets it wrong";
}

bool made_by_intel() {
  unsigned most = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(0, &most, &ebx, &ecx, &edx) && ebx == signature_INTEL_ebx && edx == signature_INTEL_edx &&
         ecx == signature_INTEL_ecx;
}
#endif

// empty unless tiles widened to float are faster. Intel's AVX512-BF16 starts a product every second cycle and its FMA
// two a cycle, so float does twice the work; AMX, which torch's `could_pack` asks for, and AMD's Zen 4 and 5 do more
std::string slowness() {
#if defined(__x86_64__)
  if (made_by_intel() && !at::native::cpublas::could_pack(at::kBFloat16)) {
    return "slower here: Intel's bfloat16 units do half the work of its float units where AMX is off";
  }
#endif
  return "";
}

// empty where brgemm can run
std::string refusal() {
#if defined(__x86_64__)
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool avx512_bf16 = __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & (1u << 5));
  if (!avx512_bf16) return "this processor has no bfloat16 units";
  static const std::string found = try_brgemm();
  return found;
#else
  return "not tried on this architecture";
#endif
}

constexpr const char* kBrgemm = "brgemm";
constexpr const char* kFloat = "float";

BrgemmBf16 choose() {
  const char* variable = std::getenv("SOLA_BF16");
  const std::string wish = variable == nullptr ? "" : variable;
  if (wish != "" && wish != kBrgemm && wish != kFloat) {
    throw std::runtime_error("SOLA_BF16=" + wish + " names no GEMM backend; known: brgemm, float");
  }
  if (wish == kBrgemm && !refusal().empty()) throw std::runtime_error("SOLA_BF16=brgemm: " + refusal());
  if (wish == kBrgemm) return &brgemm;
  return wish == kFloat || !refusal().empty() || !slowness().empty() ? nullptr : &brgemm;
}

}  // namespace

BrgemmBf16 native_bf16() {
  static const BrgemmBf16 chosen = choose();
  return chosen;
}

std::vector<Choice> bf16_backends() {
  const bool native = native_bf16() != nullptr;
  const std::string refused = refusal();
  return {{"oneDNN brgemm", refused.empty() ? slowness() : refused, native},
          {"own micro-kernel on tiles widened to float", "", !native}};
}

}  // namespace sola
