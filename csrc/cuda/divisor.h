// what kernels divide by
#pragma once

#include <cstdint>

namespace sola::cuda {

// A division by a product: for 0 ≤ n < limit ⌊n / by⌋ is (⌊n · factor / 2³²⌋ + n) / 2^shift
// (Granlund and Montgomery, PLDI 1994).
struct Divisor {
  int64_t by = 1, limit = 0;
  uint32_t factor = 1;
  int shift = 0;

  Divisor() = default;
  explicit Divisor(int64_t by) : by(by) {
    constexpr int64_t kLimit = int64_t(1) << 31;
    if (by < 1 || by >= kLimit) return;
    limit = kLimit;
    while (int64_t(1) << shift < by) ++shift;
    factor = uint32_t((uint64_t((int64_t(1) << shift) - by) << 32) / uint64_t(by) + 1);
  }
};

}  // namespace sola::cuda
