// tensor cores that work for themselves: products of a warpgroup are done at some moment between their start and the
// wait for them, in their order; descriptors as in the PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions"

#include <functional>

#include "machine.h"
#include "races.h"

namespace simt {
namespace {

constexpr int kDepth = 16, kRows = 16, kMostColumns = 256, kWarps = 4;

// shared memory of a block doesn't begin where a swizzle pattern does
constexpr uint32_t kSharedStart = 16;

float read(int warp, Kind kind, uint32_t address) {
  Machine& m = machine();
  const uint32_t place = address - kSharedStart;
  if (address < kSharedStart || place + 2 > m.shared_bytes) {
    fail("wgmma: an operand lies outside shared memory");
    return 0.0f;
  }
  const unsigned char* at = shared_of(block_of(warp * kLanes)) + place;
  races::access(races::Kind::read, warp * kLanes, at, 2);
  uint16_t bits;
  std::memcpy(&bits, at, 2);
  return operand(kind, bits, 0);
}

// base offset, and bits without a meaning
constexpr uint64_t kUnusedBits = 0x3fffc000c000c000;

struct Descriptor {
  uint64_t bits;
  uint32_t start, leading, stride, row_bytes, pattern;

  explicit Descriptor(uint64_t all)
      : bits(all),
        start(uint32_t(bits & 0x3fff) << 4),
        leading(uint32_t(bits >> 16 & 0x3fff) << 4),
        stride(uint32_t(bits >> 32 & 0x3fff) << 4),
        row_bytes(bits >> 62 == 1 ? 128 : 64),
        pattern(bits >> 62 == 1 ? 0x70 : 0x30) {
    if (bits >> 62 != 1 && bits >> 62 != 2) fail("wgmma: a swizzle that nobody uses here");
  }

  // Patterns repeat every eight rows, from addresses on that are multiples of their size; an operand begins with one,
  // or 16 numbers further on in the first row. A device would read something else without a word.
  void check(bool across, int others) const {
    const uint32_t repeat = 8 * row_bytes, into = start % repeat;
    if (bits & kUnusedBits) fail("wgmma: a descriptor has a base offset, or bits without a meaning");
    if (across ? into != 0 : into >= row_bytes || into % (2 * kDepth) != 0)
      fail("wgmma: an operand does not begin where its pattern does");
    if (stride == 0 || stride % repeat != 0) fail("wgmma: eight rows and the next lie in different patterns");
    if (across && others > int(row_bytes / 2) && (leading == 0 || leading % repeat != 0))
      fail("wgmma: a block of columns and the next lie in different patterns");
  }

  uint32_t swizzled(uint32_t address) const { return address ^ (address >> 3 & pattern); }
  uint32_t along(int other, int depth) const {
    return swizzled(start + uint32_t(other) / 8 * stride + uint32_t(other) % 8 * row_bytes + uint32_t(depth) * 2);
  }
  uint32_t across(int other, int depth) const {
    const uint32_t block = row_bytes / 2;
    return swizzled(start + uint32_t(other) / block * leading + uint32_t(depth) / 8 * stride +
                    uint32_t(depth) % 8 * row_bytes + uint32_t(other) % block * 2);
  }
};

// Registers of products: between the fence and a product nobody writes them but products.
void remember(Products& products, const void* at, size_t words) {
  auto& held = products.registers[at];
  held.resize(words);
  std::memcpy(held.data(), at, 4 * words);
}

void check_registers(Products& products, const void* at, size_t words) {
  const auto held = products.registers.find(at);
  if (held == products.registers.end() || held->second.size() != words) return remember(products, at, words);
  if (std::memcmp(held->second.data(), at, 4 * words))
    fail("wgmma: registers of a product have been written since the last wgmma.fence");
}

void pass_fence(Products& products) {
  products.arrived = true;
  for (auto& [at, held] : products.registers) std::memcpy(held.data(), at, 4 * held.size());
}

void load_left(int warp, const Pending& p, Kind kind, float (&a)[kRows][kDepth]) {
  if (!p.product.from_registers) {
    const Descriptor left(p.product.left);
    for (int row = 0; row < kRows; ++row) {
      for (int k = 0; k < kDepth; ++k) a[row][k] = read(warp, kind, left.along(warp % 4 * kRows + row, k));
    }
    return;
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 4; ++i) {
      for (int half = 0; half < 2; ++half) {
        a[lane / 4 + i % 2 * 8][2 * (lane % 4) + half + i / 2 * 8] = operand(kind, p.left[lane][i], half);
      }
    }
  }
}

void execute(int warp, const Pending& p) {
  const Kind kind = p.product.bf16 ? Kind::bf16 : Kind::half;
  const Descriptor right(p.product.right);
  static float a[kRows][kDepth], b[kDepth][kMostColumns];
  load_left(warp, p, kind, a);
  for (int k = 0; k < kDepth; ++k) {
    for (int n = 0; n < p.product.columns; ++n) {
      b[k][n] = read(warp, kind, p.product.across ? right.across(n, k) : right.along(n, k));
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int index = 0; index < p.product.columns / 2; ++index) {
      const int i = index % 4, row = lane / 4 + i / 2 * 8, column = index / 4 * 8 + lane % 4 * 2 + i % 2;
      float sum = p.product.adds ? p.sums[lane][index] : 0.0f;
      for (int k = 0; k < kDepth; ++k) sum += a[row][k] * b[k][column];
      p.sums[lane][index] = sum;
    }
    remember(machine().products[warp], p.sums[lane], size_t(p.product.columns / 2));
  }
}

void execute_all(int warp, std::vector<Pending>& group) {
  for (const Pending& p : group) execute(warp, p);
  group.clear();
}

void check_descriptors(const Product& product) {
  if (!product.from_registers) Descriptor(product.left).check(false, kWarps * kRows);
  Descriptor(product.right).check(product.across, product.columns);
}

// the warps of a warpgroup ask for the same products in the same order
void agree(int warp, const Product& product) {
  std::vector<Product>& asked = machine().asked[warp / kWarps];
  size_t& mine = machine().products[warp].started;
  if (mine == asked.size()) asked.push_back(product);
  if (!(asked[mine++] == product)) fail("wgmma: the warps of a warpgroup ask for different products");
}

void begin(int warp) {
  Machine& m = machine();
  Products& products = m.products[warp];
  if (!products.arrived) fail("wgmma: a product without wgmma.fence before");
  if (m.unpublished[block_of(warp * kLanes)])
    fail("wgmma: shared memory has been written and not published to tensor cores");
  Pending pending{request_of(warp, 0)->product, {}, {}};
  check_descriptors(pending.product);
  agree(warp, pending.product);
  for (int lane = 0; lane < kLanes; ++lane) {
    const Request& request = *request_of(warp, lane);
    if (request.product.left != pending.product.left || request.product.right != pending.product.right) {
      fail("wgmma: the lanes of a warp name different operands");
    }
    pending.sums[lane] = static_cast<float*>(request.out);
    pending.left[lane] = request.a;
    check_registers(products, request.out, size_t(pending.product.columns / 2));
    if (request.a) check_registers(products, request.a, 4);
  }
  products.open.push_back(pending);
  if (m.random() % 2 == 0) {
    for (auto& group : products.groups) execute_all(warp, group);
    execute_all(warp, products.open);
  }
}

void ask_for_product(const Product& product, float* sums, const uint32_t* left) {
  Request& request = ask(Kind::products);
  request.product = product;
  request.out = sums;
  request.a = left;
  stop(State::warp);
}

}  // namespace

void perform_products(int warp, Kind kind) {
  Products& products = machine().products[warp];
  if (kind == Kind::products) begin(warp);
  if (kind == Kind::arrive) pass_fence(products);
  if (kind == Kind::commit) {
    products.groups.push_back(std::move(products.open));
    products.open.clear();
  }
  if (kind == Kind::wait) {
    while (int(products.groups.size()) > request_of(warp, 0)->lanes) {
      execute_all(warp, products.groups.front());
      products.groups.pop_front();
    }
    products.arrived = false;
  }
}

void end_products() {
  const Machine& m = machine();
  for (size_t warp = 0; warp < m.products.size(); ++warp) {
    const Products& products = m.products[warp];
    if (products.started != m.asked[warp / kWarps].size())
      fail("wgmma: a product was not reached by all warps of its warpgroup");
    if (!products.groups.empty() || !products.open.empty()) fail("wgmma: a warp has ended with products under way");
  }
}

uint32_t shared_address(const void* p) {
  return kSharedStart + uint32_t(static_cast<const unsigned char*>(p) - shared_memory());
}

void start_product(bool bf16, float* sums, int columns, uint64_t left, uint64_t right, bool adds) {
  ask_for_product({bf16, adds, false, columns, false, left, right}, sums, nullptr);
}
void start_product(bool bf16, float* sums, int columns, const uint32_t* left, uint64_t right, bool across) {
  ask_for_product({bf16, true, across, columns, true, 0, right}, sums, left);
}
void arrive_warpgroup() {
  ask(Kind::arrive);
  stop(State::warp);
}
void commit_products() {
  ask(Kind::commit);
  stop(State::warp);
}
void wait_for_products(int pending) {
  ask(Kind::wait).lanes = pending;
  stop(State::warp);
}
void leave_unpublished(int thread) { machine().fibers[thread].unpublished = true; }
void publish_to_tensor_cores() { machine().fibers[machine().current].unpublished = false; }

}  // namespace simt
