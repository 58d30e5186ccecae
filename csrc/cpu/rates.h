// measured ceilings of one core, for the profiler
#pragma once

#include <string>

namespace sola {

// floating-point operations per second of one thread on GEMM tiles in its caches, the best of `seconds` of trying;
// dtype: float64, float32, bfloat16 or float16
double gemm_rate(const std::string& dtype, double seconds);

// float32 exponentials per second of one thread
double exp_rate(double seconds);

}  // namespace sola
