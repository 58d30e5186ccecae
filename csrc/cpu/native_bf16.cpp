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

bool has_bf16_units() {
#if defined(__x86_64__)
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool avx512_bf16 = __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & (1u << 5));
  return avx512_bf16 && at::native::cpublas::could_pack(at::kBFloat16);
#else
  return false;
#endif
}

BrgemmBf16 choose() {
  const char* wish = std::getenv("SOLA_BF16");
  const std::string name = wish == nullptr ? "" : wish;
  if (name == "float") return nullptr;
  if (name != "" && name != "brgemm") {
    throw std::runtime_error("SOLA_BF16=" + name + " names no GEMM backend; known: brgemm, float");
  }
  if (name == "brgemm" && !has_bf16_units()) {
    throw std::runtime_error("SOLA_BF16=brgemm: this machine has no bfloat16 units that oneDNN can use");
  }
  return has_bf16_units() ? &brgemm : nullptr;
}

}  // namespace

BrgemmBf16 native_bf16() {
  static const BrgemmBf16 chosen = choose();
  return chosen;
}

}  // namespace sola
