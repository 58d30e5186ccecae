// what one core can do at best: the same GEMM tiles and the same exponential that the ops use, on data in its caches

#include "cpu/softmax.h"

namespace sola::SOLA_ISA {

// the shape of the score product: a block of keys times a tile of queries, head dim 64
constexpr int64_t kRows = 128, kDepth = 64;
constexpr int kRepeats = 64;

// numbers that differ, as data do: on zeros units draw less power, and may run at a higher clock
template <class T>
void vary(T* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) std::memset(x + i, int(0x30 + i % 16), sizeof(T));
}

template <class T>
class Tiles {
 public:
  explicit Tiles(const Task& task) : task_(task), arena_(task.scratch) {
    a_ = arena_.take<T>(kRows * kDepth);
    b_ = arena_.take<T>(kDepth * kTile);
    c_ = arena_.take<Acc<T>>(kRows * kTile);
  }

  size_t scratch() const { return arena_.used(); }

  double multiply() {
    vary(a_, kRows * kDepth);
    vary(b_, kDepth * kTile);
    for (int r = 0; r < kRepeats; ++r) {
      gemm(task_, Product<T>{kRows, kTile, kDepth, {a_, kDepth, 1}, b_, kTile, c_, kTile}, Into::overwrite);
    }
    return 2.0 * kRows * kDepth * kTile * kRepeats;
  }

 private:
  const Task& task_;
  Arena arena_;
  T *a_, *b_;
  Acc<T>* c_;
};

static size_t scratch(const Task& task) {
  return with_types(task, [&]<class In, class Mul>(Types<In, Mul>) { return Tiles<Mul>(task).scratch(); });
}

static double multiply(const Task& task) {
  return with_types(task, [&]<class In, class Mul>(Types<In, Mul>) { return Tiles<Mul>(task).multiply(); });
}

static double exponentiate(const Task& task) {
  constexpr int64_t kCount = kRows * kTile;
  auto* x = reinterpret_cast<float*>(task.scratch);
  fill(x, kCount, -0.5f);
  for (int r = 0; r < kRepeats; ++r) {
    // 2^x of something in (0, 1] stays in the range where exponentials are neither 0 nor Inf
    for (int64_t i = 0; i < kCount; i += kLanes<float>) store(x + i, vexp2<false>(load(x + i) - 1.0f));
  }
  return double(kCount) * kRepeats;
}

extern const RateKernels rates;
const RateKernels rates{scratch, multiply, exponentiate};

}  // namespace sola::SOLA_ISA
