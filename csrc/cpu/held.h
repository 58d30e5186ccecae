// bytes that operators allocate inside, for the profiler: with as many threads as torch has now
#pragma once

#include <cstdint>
#include <string>
#include <utility>

namespace sola {

// channel mix, beside its arguments and its result: scratch of its threads, and partial sums where hidden units are
// cut. (N, C) tokens, M hidden units; dtype: float64, float32, bfloat16 or float16
int64_t channel_mix_held(int64_t tokens, int64_t channels, int64_t hidden, const std::string& dtype);

// its backward, beside its arguments and all results: while it computes, where gradients of weights are shares and not
// yet results (which may be less than none) and hidden units may be cut too, and when the last of them is added up
std::pair<int64_t, int64_t> channel_mix_backward_held(int64_t tokens, int64_t channels, int64_t hidden,
                                                      const std::string& dtype);

}  // namespace sola
