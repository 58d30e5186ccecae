// the state of the emulator, and where a lane stops until the others have come
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "simt.h"

namespace simt {

constexpr int kLanes = 32;

enum class State { ready, warp, block, cluster, done };
enum class Kind { none, sync, shuffle, matrices, transposed, bf16, half, tf32, products, arrive, commit, wait };

// of a warpgroup's product, what one warp has to do with it
struct Product {
  bool bf16 = true, adds = true, across = false;  // the right operand's depth across rows
  int columns = 0;
  bool from_registers = false;
  uint64_t left = 0, right = 0;

  bool operator==(const Product&) const = default;
};

struct Request {
  Kind kind = Kind::none;
  void* out = nullptr;
  const void* row = nullptr;
  const uint32_t* a = nullptr;
  uint32_t b[2] = {};
  float x = 0;
  int lanes = 0;  // whose number a shuffle wants, or how many groups of products may be under way
  Product product;
};

// one that comes early is done before its thread goes on, others when somebody waits
struct Copy {
  void* to;
  const void* from;  // null for zeros
  size_t bytes;
  bool early;
};

struct Fiber {
  std::unique_ptr<std::byte[]> stack;
  void* sp = nullptr;
  State state = State::done;
  Request request;
  std::vector<std::vector<Copy>> groups;
  std::vector<Copy> open;
  bool unpublished = false;  // copies have arrived, or numbers been stored, that tensor cores may not see yet
  // of a cluster: has met the other blocks, and has since then asked for places in their memory
  bool met = false, reaches = false;
};

// what a warp has asked tensor cores for and not waited for: what each product reads and writes, lane by lane
struct Pending {
  Product product;
  float* sums[kLanes];
  const uint32_t* left[kLanes];
};
struct Products {
  std::deque<std::vector<Pending>> groups;
  std::vector<Pending> open;
  bool arrived = false;
  size_t started = 0;
  // what registers of products held at the last wgmma.fence, or what products have left there since
  std::unordered_map<const void*, std::vector<uint32_t>> registers;
};

struct Machine {
  std::vector<Fiber> fibers;
  std::unique_ptr<unsigned char[]> shared;  // of the blocks of a cluster, one after the other
  size_t shared_bytes = 0, shared_stride = 0;
  std::mt19937_64 random{0};
  void* scheduler = nullptr;
  // threads are counted through the blocks of a cluster; `threads` are of one block
  int current = 0, threads = 0, cluster = 1;
  unsigned first_block = 0;
  bool running = false;
  int64_t blocks = 0;
  const std::function<void()>* kernel = nullptr;
  std::vector<Products> products;           // of warps
  std::vector<std::vector<Product>> asked;  // of warpgroups: all products, in their order
  std::vector<bool> unpublished;            // of blocks: whether a thread had anything at the last barrier
  bool early = false, waited = false;       // of the launch: whether it may start early, whether a thread has waited
  std::string failure;
};

Machine& machine();
// of the block of a thread of the cluster
int block_of(int thread);
unsigned char* shared_of(int block);
void stop(State state);
Request& ask(Kind kind);
Request* request_of(int warp, int lane);
// a number of an operand: half of a word, or all of it for Kind::tf32
float operand(Kind kind, uint32_t word, int half);
// what the lanes of a warp have asked for together
void perform_products(int warp, Kind kind);
// whether a cluster has left its products as it must (warpgroup.cpp)
void end_products();
// a thread, and then a launch, has come to its end (grid.cpp)
void end_thread();
void end_launch();
// whether bytes lie in the shared memory of the running thread's block
bool in_own_shared(const void* at, size_t bytes);

}  // namespace simt
