// spreads tasks over torch's threads, each with scratch of its own
#pragma once

#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>

#include "cpu/isa.h"

namespace sola {

// oneDNN's brgemm for bfloat16 when this machine has AMX or AVX512-BF16 units, else null
BrgemmBf16 native_bf16();
inline BrgemmBf16 native_for(Dtype dtype) { return dtype == Dtype::bf16 ? native_bf16() : nullptr; }
std::vector<Choice> bf16_backends();

// below this many operations a second thread costs more than it brings (a few microseconds of work)
constexpr double kSerialOps = 1e6;

// how many tasks a thread takes at least; `ops` is the size of one in scalar operations
inline int64_t grain_of(int64_t count, double ops) {
  return std::clamp<int64_t>(int64_t(kSerialOps / std::max(ops, 1.0)), 1, std::max<int64_t>(count, 1));
}

// a cache line more than a task asked for, to begin at one
constexpr size_t kLine = 64;

// calls f(index, task) for every index
template <class F>
void run_tasks(int64_t count, double ops, Dtype dtype, BrgemmBf16 brgemm, size_t scratch_bytes, const F& f) {
  const auto profiler = c10::ThreadLocalDebugInfo::current();
  at::parallel_for(0, count, grain_of(count, ops), [&](int64_t begin, int64_t end) {
    // torch's allocator, and the caller's profiler in every thread, so that it sees all scratch
    const c10::DebugInfoGuard profiled(profiler);
    auto scratch = c10::GetCPUAllocator()->allocate(scratch_bytes + kLine);
    const auto base = (reinterpret_cast<uintptr_t>(scratch.get()) + kLine - 1) / kLine * kLine;
    const Task task{dtype, brgemm, reinterpret_cast<std::byte*>(base)};
    for (int64_t i = begin; i < end; ++i) f(i, task);
    if (brgemm) at::native::cpublas::brgemm_release();
  });
}

// scratch of all threads among which run_tasks would spread so many tasks
inline int64_t scratch_of(int64_t count, double ops, size_t scratch_bytes) {
  const int64_t grain = grain_of(count, ops), threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  const int64_t most = std::max<int64_t>(1, std::min(threads, (count + grain - 1) / grain));
  const int64_t each = (count + most - 1) / most;
  return (count + each - 1) / each * int64_t(scratch_bytes + kLine);
}

// into how many shares to cut each of `outer` pieces of work: the fewest that keep all threads busy nine tenths of the
// time, at most `limit`
inline int64_t choose_shares(int64_t outer, int64_t limit) {
  const int64_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  if (outer < 1) return 1;
  int64_t shares = 1;
  const auto busy = [&](int64_t s) {
    const int64_t tasks = outer * s;
    return double(tasks) / double((tasks + threads - 1) / threads * threads);
  };
  while (shares < limit && busy(shares) < 0.9) ++shares;
  return shares;
}

}  // namespace sola
