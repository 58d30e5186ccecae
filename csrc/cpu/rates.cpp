#include "cpu/rates.h"

#include <chrono>

#include "cpu/parallel.h"
#include "sizes.h"

namespace sola {
namespace {

// the highest rate of all runs within the time, and of three at least
template <class Work>
double best_rate(double seconds, const Work& work) {
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  const auto start = Clock::now();
  double best = 0;
  for (int runs = 0; runs < 3 || since(start) < seconds; ++runs) {
    const auto before = Clock::now();
    const double operations = work();
    best = std::max(best, operations / std::max(since(before), 1e-9));
  }
  return best;
}

template <class Work>
double best_rate(Dtype dtype, double seconds, const Work& work) {
  double rate = 0;
  const BrgemmBf16 brgemm = native_for(dtype);
  run_tasks(1, 1, dtype, brgemm, kernels().rates.scratch({dtype, brgemm, nullptr}),
            [&](int64_t, const Task& task) { rate = best_rate(seconds, [&] { return work(task); }); });
  return rate;
}

}  // namespace

double gemm_rate(const std::string& dtype, double seconds) {
  return best_rate(dtype_named(dtype), seconds, [](const Task& task) { return kernels().rates.multiply(task); });
}

double exp_rate(double seconds) {
  return best_rate(Dtype::f32, seconds, [](const Task& task) { return kernels().rates.exponentiate(task); });
}

}  // namespace sola
