// the scheduler of the emulator: fibers, warps, barriers

#include <algorithm>
#include <numeric>

#include "machine.h"
#include "ptx.h"
#include "races.h"
#include "switch.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_UNPOISON_MEMORY_REGION(address, size)
#endif

simt_uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace simt {

Machine& machine() {
  static Machine it;
  return it;
}

int block_of(int thread) { return thread / machine().threads; }
unsigned char* shared_of(int block) { return machine().shared.get() + size_t(block) * machine().shared_stride; }

void stop(State state) {
  Machine& m = machine();
  Fiber& fiber = m.fibers[m.current];
  fiber.state = state;
  simt_switch(&fiber.sp, m.scheduler);
}

Request& ask(Kind kind) {
  Request& request = machine().fibers[machine().current].request;
  request.kind = kind;
  return request;
}

Request* request_of(int warp, int lane) { return &machine().fibers[warp * kLanes + lane].request; }

float operand(Kind kind, uint32_t word, int half) {
  const uint16_t bits = uint16_t(word >> (16 * half));
  if (kind == Kind::bf16) return bits_to_float(uint32_t(bits) << 16);
  if (kind == Kind::half) return half_to_float(bits);
  // tensor cores look at the upper 19 bits only
  return bits_to_float(word & 0xffffe000);
}

// Tensor cores add up exactly and cut off what float has no room for ("at least single precision", says the PTX ISA, in
// no order or rounding).
float cut(double sum) {
  const float nearest = float(sum);
  return std::isfinite(nearest) && std::abs(double(nearest)) > std::abs(sum) ? std::nextafter(nearest, 0.0f) : nearest;
}

namespace {

constexpr size_t kStack = 256 << 10;

void entry() {
  (*machine().kernel)();
  end_thread();
  stop(State::done);
  __builtin_unreachable();
}

void start(Fiber& fiber) {
  if (!fiber.stack) fiber.stack = std::make_unique<std::byte[]>(kStack);
  // what the last fiber on this stack never returned from
  ASAN_UNPOISON_MEMORY_REGION(fiber.stack.get(), kStack);
  auto top = reinterpret_cast<uintptr_t>(fiber.stack.get() + kStack) & ~uintptr_t(15);
  // six saved registers below the address that the switch returns to; entry starts as if it had been called
  auto* frame = reinterpret_cast<void**>(top) - 2;
  *frame = reinterpret_cast<void*>(&entry);
  fiber.sp = frame - 6;
  fiber.state = State::ready;
  fiber.groups.clear();
  fiber.open.clear();
  fiber.unpublished = fiber.met = fiber.reaches = false;
}

// ---- what the lanes of a warp do together

uint16_t read16(const void* row, int index) {
  uint16_t bits;
  std::memcpy(&bits, static_cast<const char*>(row) + 2 * index, 2);
  return bits;
}

void move_matrices(int warp, bool transposed) {
  uint32_t loaded[kLanes][4];
  // a row goes to four lanes, in the name of one that has written none of it
  for (int lane = 0; lane < kLanes; ++lane)
    for (int reader : {lane, lane ^ 1})
      races::access(races::Kind::read, warp * kLanes + reader, request_of(warp, lane)->row, 16);
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int g = lane / 4, t = lane % 4;
      const auto at = [&](int row, int column) { return read16(request_of(warp, 8 * i + row)->row, column); };
      const uint16_t low = transposed ? at(2 * t, g) : at(g, 2 * t);
      const uint16_t high = transposed ? at(2 * t + 1, g) : at(g, 2 * t + 1);
      loaded[lane][i] = uint32_t(high) << 16 | low;
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) std::memcpy(request_of(warp, lane)->out, loaded[lane], 16);
}

// fragment layouts of mma.m16n8k16 (16-bit) and m16n8k8 (tf32), PTX ISA, "Matrix Fragments for mma"
void multiply(int warp, Kind kind) {
  const bool tf32 = kind == Kind::tf32;
  const int depth = tf32 ? 8 : 16;
  float a[16][16], b[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const Request& r = *request_of(warp, lane);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      for (int half = 0; half < (tf32 ? 1 : 2); ++half) {
        const int k = tf32 ? t + i / 2 * 4 : 2 * t + half + i / 2 * 8;
        a[g + i % 2 * 8][k] = operand(kind, r.a[i], half);
        if (i < 2) b[tf32 ? t + 4 * i : 2 * t + half + 8 * i][g] = operand(kind, r.b[i], half);
      }
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    auto* c = static_cast<float*>(request_of(warp, lane)->out);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      double sum = c[i];
      for (int k = 0; k < depth; ++k) sum += double(a[row][k]) * double(b[k][column]);
      c[i] = cut(sum);
    }
  }
}

void shuffle(int warp) {
  float values[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    // __shfl_sync would take it modulo the width: no kernel of ours means that
    if (unsigned(request_of(warp, lane)->lanes) >= kLanes) return fail("a shuffle asks for a lane outside the warp");
  }
  for (int lane = 0; lane < kLanes; ++lane) values[lane] = request_of(warp, request_of(warp, lane)->lanes)->x;
  for (int lane = 0; lane < kLanes; ++lane) request_of(warp, lane)->x = values[lane];
}

void perform(int warp) {
  const Kind kind = request_of(warp, 0)->kind;
  for (int lane = 1; lane < kLanes; ++lane) {
    if (request_of(warp, lane)->kind != kind) return fail("the lanes of a warp are at different primitives");
  }
  if (kind == Kind::sync) races::pass_warp_barrier(warp);
  if (kind == Kind::shuffle) shuffle(warp);
  if (kind == Kind::matrices || kind == Kind::transposed) move_matrices(warp, kind == Kind::transposed);
  if (kind == Kind::bf16 || kind == Kind::half || kind == Kind::tf32) multiply(warp, kind);
  if (kind >= Kind::products) perform_products(warp, kind);
}

// ---- scheduling

void resume(int thread) {
  Machine& m = machine();
  m.current = thread;
  threadIdx.x = unsigned(thread % m.threads);
  blockIdx.x = m.first_block + unsigned(block_of(thread));
  m.running = true;
  simt_switch(&m.scheduler, m.fibers[thread].sp);
  m.running = false;
}

// runs every lane that can run, then what they stopped for together
void run_warp(int warp) {
  Machine& m = machine();
  int order[kLanes];
  std::iota(order, order + kLanes, 0);
  std::shuffle(order, order + kLanes, m.random);
  for (int lane : order) {
    if (m.fibers[warp * kLanes + lane].state == State::ready) resume(warp * kLanes + lane);
  }
  int waiting = 0;
  for (int lane = 0; lane < kLanes; ++lane) waiting += m.fibers[warp * kLanes + lane].state == State::warp;
  if (waiting == 0) return;
  if (waiting < kLanes) return fail("a warp primitive was not reached by all lanes");
  perform(warp);
  for (int lane = 0; lane < kLanes; ++lane) m.fibers[warp * kLanes + lane].state = State::ready;
}

bool all_at(State state, int first, int count) {
  const Fiber* fibers = machine().fibers.data() + first;
  return std::all_of(fibers, fibers + count, [&](const Fiber& fiber) { return fiber.state == state; });
}

// the blocks whose threads have all come to a barrier of theirs, or to one of the cluster
std::vector<int> blocks_at_barriers() {
  const Machine& m = machine();
  std::vector<int> blocks(m.cluster), found;
  std::iota(blocks.begin(), blocks.end(), 0);
  if (all_at(State::cluster, 0, m.threads * m.cluster)) return blocks;
  std::copy_if(blocks.begin(), blocks.end(), std::back_inserter(found),
               [&](int block) { return all_at(State::block, block * m.threads, m.threads); });
  return found;
}

void wake(int block, std::vector<int>& runnable) {
  Machine& m = machine();
  m.unpublished[block] = false;
  for (int thread = block * m.threads; thread < (block + 1) * m.threads; ++thread) {
    Fiber& fiber = m.fibers[thread];
    if (fiber.unpublished) m.unpublished[block] = true;
    fiber.state = State::ready;
    if (thread % kLanes == 0) runnable.push_back(thread / kLanes);
  }
}

void run_cluster() {
  Machine& m = machine();
  const int threads = m.threads * m.cluster;
  for (int i = 0; i < threads; ++i) start(m.fibers[i]);
  m.products.assign(threads / kLanes, {});
  m.asked.assign(threads / kLanes, {});
  m.unpublished.assign(m.cluster, false);
  std::vector<int> runnable(threads / kLanes);
  std::iota(runnable.begin(), runnable.end(), 0);
  while (m.failure.empty()) {
    if (runnable.empty()) {
      if (all_at(State::done, 0, threads)) return end_products();
      const std::vector<int> blocks = blocks_at_barriers();
      if (blocks.empty()) return fail("a barrier was not reached by all threads of the block");
      races::pass_block_barrier();
      for (int block : blocks) wake(block, runnable);
    }
    const size_t pick = m.random() % runnable.size();
    const int warp = runnable[pick];
    run_warp(warp);
    const auto* lanes = &m.fibers[warp * kLanes];
    if (std::none_of(lanes, lanes + kLanes, [](const Fiber& f) { return f.state == State::ready; })) {
      runnable.erase(runnable.begin() + std::ptrdiff_t(pick));
    }
  }
}

void ask_for_matrices(Kind kind, uint32_t (&r)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16) fail("ldmatrix: a row is not aligned to 16 bytes");
  if (!in_own_shared(row, 16)) give_up("ldmatrix: a row lies outside the block's shared memory");
  Request& request = ask(kind);
  request.out = r;
  request.row = row;
  stop(State::warp);
}

void ask_for_mma(Kind kind, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Request& request = ask(kind);
  request.out = c;
  request.a = a;
  request.b[0] = b0;
  request.b[1] = b1;
  stop(State::warp);
}

void arrive(const Copy& copy) {
  copy.from ? std::memcpy(copy.to, copy.from, copy.bytes) : std::memset(copy.to, 0, copy.bytes);
}

void ask_for_copy(void* shared, const void* global, bool exists, size_t bytes) {
  Machine& m = machine();
  const auto misaligned = (reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global)) % bytes;
  if (misaligned) fail("cp.async: an address is not aligned to " + std::to_string(bytes) + " bytes");
  if (!in_own_shared(shared, bytes)) give_up("cp.async: a copy goes outside the block's shared memory");
  if (exists) races::access(races::Kind::read, m.current, global, bytes);
  races::access(races::Kind::copy_starts, m.current, shared, bytes);
  const Copy copy{shared, exists ? global : nullptr, bytes, m.random() % 2 == 0};
  if (copy.early) arrive(copy);
  m.fibers[m.current].open.push_back(copy);
}

}  // namespace

int running_thread() { return machine().running ? machine().current : -1; }
bool is_private(const void* at) {
  const std::byte* stack = machine().fibers[machine().current].stack.get();
  return at >= stack && at < stack + kStack;
}
void fail(const std::string& reason) {
  if (machine().failure.empty()) machine().failure = reason;
}
void give_up(const std::string& reason) {
  fail(reason);
  stop(State::done);
}

void launch(const void* kernel, const std::function<void()>& body, const void* params, int64_t blocks, int threads,
            size_t shared, int cluster, bool early) {
  if (keep_error(check_launch(kernel, blocks, threads, shared, cluster)) != cudaSuccess) return;
  Machine& m = machine();
  m.failure.clear();
  const ptx::Entry entry = ptx::entry_of(kernel);
  const std::function<void()> translated = [&] { entry(static_cast<const unsigned char*>(params)); };
  m.kernel = entry ? &translated : &body;
  m.threads = threads;
  m.cluster = cluster;
  m.early = early;
  m.waited = false;
  m.shared_bytes = shared;
  m.shared_stride = (shared + 15) / 16 * 16;
  if (m.fibers.size() < size_t(threads * cluster)) m.fibers.resize(threads * cluster);
  blockDim = {unsigned(threads), 1, 1};
  gridDim = {unsigned(blocks), 1, 1};
  std::vector<unsigned> order(blocks / cluster);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), m.random);
  races::start_launch(early);
  for (unsigned one : order) {
    m.first_block = one * unsigned(cluster);
    // of just the size asked for, so that AddressSanitizer sees what lies beyond; every number in it is a NaN
    const size_t bytes = m.shared_stride * size_t(cluster - 1) + shared;
    m.shared = std::make_unique_for_overwrite<unsigned char[]>(bytes);
    std::memset(m.shared.get(), 0xff, bytes);
    races::start_block(m.shared.get(), bytes, one);
    m.blocks += cluster;
    run_cluster();
    if (!races::found().empty()) fail(races::found());
    if (!m.failure.empty()) break;
  }
  if (m.failure.empty()) end_launch();
  if (!m.failure.empty()) keep_error(cudaErrorLaunchFailure);
}

void set_seed(uint64_t seed) { machine().random.seed(seed); }
int64_t blocks_run() { return machine().blocks; }

// operator new aligns to 16 bytes
unsigned char* shared_memory() { return shared_of(block_of(machine().current)); }

void sync_block() { stop(State::block); }
void sync_warp() {
  ask(Kind::sync);
  stop(State::warp);
}
float shuffle_from(float x, int lane) {
  Request& request = ask(Kind::shuffle);
  request.x = x;
  request.lanes = lane;
  stop(State::warp);
  return request.x;
}
float shuffle_xor(float x, int lanes) { return shuffle_from(x, machine().current % kLanes ^ lanes); }
void load_matrices(uint32_t (&r)[4], const void* row) { ask_for_matrices(Kind::matrices, r, row); }
void load_matrices_transposed(uint32_t (&r)[4], const void* row) { ask_for_matrices(Kind::transposed, r, row); }
void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  ask_for_mma(Kind::bf16, c, a, b0, b1);
}
void mma_half(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  ask_for_mma(Kind::half, c, a, b0, b1);
}
void mma_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  ask_for_mma(Kind::tf32, c, a, b0, b1);
}

void copy_async(void* shared, const void* global, bool exists) { ask_for_copy(shared, global, exists, 16); }
void copy_two_async(void* shared, const void* global, bool exists) { ask_for_copy(shared, global, exists, 8); }
void commit_copies() {
  Fiber& fiber = machine().fibers[machine().current];
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}
void wait_for_copies(int pending) {
  Fiber& fiber = machine().fibers[machine().current];
  while (int(fiber.groups.size()) > pending) {
    for (const Copy& copy : fiber.groups.front()) {
      if (!copy.early) arrive(copy);
      races::access(races::Kind::copy_ends, machine().current, copy.to, copy.bytes);
      fiber.unpublished = true;
    }
    fiber.groups.erase(fiber.groups.begin());
  }
}

}  // namespace simt

const char* cudaGetErrorString(int error) {
  if (error == cudaErrorLaunchFailure) return simt::machine().failure.c_str();
  return error == cudaErrorInvalidConfiguration ? "invalid configuration" : "invalid value";
}
