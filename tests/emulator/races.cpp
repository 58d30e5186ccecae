// the race detector's memory, and what -fsanitize=thread calls

#include "races.h"

#ifdef SOLA_RACES

#include <array>
#include <unordered_map>
#include <vector>

#include "simt.h"

namespace simt::races {
namespace {

constexpr int kLanes = 32, kNobody = -1, kSeveral = -2;
constexpr size_t kGrain = 2;  // bytes, the smallest number in shared memory

// when: how many barriers there have been, of the block and of the accessing thread's warp
struct Access {
  int thread = kNobody, warp = kNobody;
  uint64_t block_time = 0, warp_time = 0;
  unsigned block = 0, launch = 0;
};

struct Cell {
  Access written, read;
  uint64_t copy_block_time = 0;  // of the block whose copy is on its way; 0 for none
};

struct Detector {
  const unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
  unsigned block = 0, launch = 0;
  bool early = false;
  uint64_t time = 1, block_begin = 1;
  std::array<bool, 1024> waited{};  // threads
  std::array<uint64_t, 32> warp_time{};
  std::vector<Cell> in_shared;
  std::unordered_map<uintptr_t, Cell> in_global;
  std::string found;
};

Detector& detector() {
  static Detector it;
  return it;
}

bool in_shared(const void* at) {
  const Detector& d = detector();
  const auto* byte = static_cast<const unsigned char*>(at);
  return byte >= d.shared && byte < d.shared + d.shared_bytes;
}

Cell& cell_of(uintptr_t address, bool shared) {
  Detector& d = detector();
  if (shared) return d.in_shared[(address - reinterpret_cast<uintptr_t>(d.shared)) / kGrain];
  return d.in_global[address / kGrain];
}

// whether an earlier access has no barrier between it and one by `thread` now
bool unordered(const Access& earlier, int thread, bool shared) {
  const Detector& d = detector();
  if (earlier.thread == kNobody) return false;
  if (!shared && earlier.launch != d.launch) return !d.waited[size_t(thread)];
  if (earlier.block_time < d.block_begin) return !shared && earlier.block != d.block;
  if (earlier.thread == thread || earlier.block_time != d.time) return false;
  return earlier.warp != thread / kLanes || earlier.warp_time == d.warp_time[earlier.warp];
}

Access now(int thread) {
  const Detector& d = detector();
  return {thread, thread / kLanes, d.time, d.warp_time[thread / kLanes], d.block, d.launch};
}

void remember_read(Access& read, int thread) {
  const Access mine = now(thread);
  const bool same_time = read.block_time == mine.block_time && read.block == mine.block && read.launch == mine.launch;
  if (!same_time || read.thread == kNobody) {
    read = mine;
  } else if (read.warp != mine.warp) {
    read.warp = read.thread = kSeveral;
  } else if (read.warp_time != mine.warp_time) {
    read = mine;
  } else if (read.thread != thread) {
    read.thread = kSeveral;
  }
}

bool unordered_read(const Access& read, int thread, bool shared) {
  if (read.warp != kSeveral) return unordered(read, thread, shared);
  const Detector& d = detector();
  if (!shared && read.launch != d.launch) return !d.waited[size_t(thread)];
  if (read.block_time < d.block_begin) return !shared && read.block != d.block;
  return read.block_time == d.time;
}

void report(const char* what, int thread, const Access& other, const void* at, bool shared) {
  Detector& d = detector();
  if (!d.found.empty()) return;
  const auto place = reinterpret_cast<uintptr_t>(at) - (shared ? reinterpret_cast<uintptr_t>(d.shared) : 0);
  const std::string who = other.thread == kSeveral ? "several threads" : "thread " + std::to_string(other.thread);
  d.found = std::string("race: thread ") + std::to_string(thread) + " " + what + " (" + who + ") at byte " +
            std::to_string(place) + " of " + (shared ? "shared" : "global") + " memory, with no barrier between";
}

}  // namespace

void start_launch(bool early) {
  Detector& d = detector();
  if (!early) d.in_global.clear();
  d.early = early;
  ++d.launch;
  d.found.clear();
}

void start_block(const unsigned char* shared, size_t bytes, unsigned block) {
  Detector& d = detector();
  d.shared = shared;
  d.shared_bytes = bytes;
  d.block = block;
  d.block_begin = ++d.time;
  d.waited.fill(!d.early);
  if (d.in_shared.size() * kGrain < bytes) d.in_shared.resize(bytes / kGrain + 1);
}

void pass_block_barrier() { ++detector().time; }
void pass_warp_barrier(int warp) { ++detector().warp_time[warp]; }
void wait_for_results(int thread) { detector().waited[size_t(thread)] = true; }
const std::string& found() { return detector().found; }

void access(Kind kind, int thread, const void* at, size_t bytes) {
  const bool shared = in_shared(at);
  if (!shared && is_private(at)) return;
  const auto first = reinterpret_cast<uintptr_t>(at), begin = first / kGrain * kGrain;
  for (uintptr_t address = begin; address < first + bytes; address += kGrain) {
    Cell& cell = cell_of(address, shared);
    const bool copying = cell.copy_block_time >= detector().block_begin;
    if (copying && kind != Kind::copy_ends)
      report("touches what is still being copied", thread, cell.written, at, shared);
    if (unordered(cell.written, thread, shared))
      report(kind == Kind::read ? "reads what another wrote" : "writes what another wrote", thread, cell.written, at,
             shared);
    if (kind == Kind::read) {
      remember_read(cell.read, thread);
      continue;
    }
    if (unordered_read(cell.read, thread, shared)) report("writes what another read", thread, cell.read, at, shared);
    cell.written = now(thread);
    if (kind == Kind::copy_starts) cell.copy_block_time = detector().time;
    if (kind == Kind::copy_ends) cell.copy_block_time = 0;
  }
}

namespace {

void see(Kind kind, const void* at, size_t bytes) {
  const int thread = running_thread();
  if (thread < 0) return;
  access(kind, thread, at, bytes);
  if (kind == Kind::write && in_shared(at)) leave_unpublished(thread);
}

}  // namespace
}  // namespace simt::races

using simt::races::Kind, simt::races::see;

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_read_range(void* at, unsigned long bytes) { see(Kind::read, at, bytes); }
void __tsan_write_range(void* at, unsigned long bytes) { see(Kind::write, at, bytes); }
#define SOLA_SEE(bytes)                                                       \
  void __tsan_read##bytes(void* at) { see(Kind::read, at, bytes); }           \
  void __tsan_write##bytes(void* at) { see(Kind::write, at, bytes); }         \
  void __tsan_unaligned_read##bytes(void* at) { see(Kind::read, at, bytes); } \
  void __tsan_unaligned_write##bytes(void* at) { see(Kind::write, at, bytes); }
SOLA_SEE(1)
SOLA_SEE(2)
SOLA_SEE(4)
SOLA_SEE(8)
SOLA_SEE(16)
}

#endif
