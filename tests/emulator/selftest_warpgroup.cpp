// a kernel that tests the emulator's warpgroups: out = (a·bᵀ)·c by asynchronous products, and mistakes to be noticed

#include "cuda/launch.h"
#include "cuda/swizzled.cuh"

namespace sola::cuda {
namespace {

constexpr int kSide = 64;

enum class Mistake {
  none,
  no_arrival,
  no_publication,
  no_wait,
  overwritten,
  between_patterns,
  base_offset,
  narrow_stride,
  parted,
  left_out,
  written_late,
  stored,
  unfinished
};

struct ChainParams {
  const void *a, *b, *c;  // (64, T) each
  float* out;             // (64, T)
  Mistake mistake;
};

// one product more, as it must not be
template <class In, class Tile, int NT, int KT>
void add_mistaken_product(Mistake mistake, float (&sums)[NT][4], uint32_t (&left)[KT][4], uint32_t right) {
  if (mistake < Mistake::base_offset) return;
  if (mistake == Mistake::left_out && warp_of() == 3) return;
  uint64_t descriptor = Tile::across(right, 0);
  if (mistake == Mistake::base_offset) descriptor |= uint64_t(1) << 49;
  if (mistake == Mistake::narrow_stride) descriptor -= uint64_t(Tile::kRowBytes >> 4) << 32;
  arrive_warpgroup();
  if (mistake == Mistake::written_late) left[0][0] ^= 1;
  product_of_registers<In, Along::other>(sums, left[0], descriptor);
  commit_products();
  if (mistake != Mistake::unfinished) wait_products<0>();
}

template <class In, int T>
void chain(ChainParams p) {
  using Tile = SwizzledTile<kSide, T>;
  unsigned char* memory = aligned_memory() + (p.mistake == Mistake::between_patterns ? 512 : 0);
  const uint32_t a = operand_place(memory), b = a + Tile::kBytes / 16, c = b + Tile::kBytes / 16;
  unsigned char* to = memory;
  for (const void* from : {p.a, p.b, p.c}) {
    copy_swizzled<Tile, kWarpgroup>(Rows<const In>{static_cast<const In*>(from), T, kSide, T}, to);
    to += Tile::kBytes;
  }
  commit_copies();
  wait_copies<0>();
  if (p.mistake != Mistake::no_publication) publish_to_tensor_cores();
  sync_block();
  if (p.mistake == Mistake::stored) {
    // what is there already, in the ordinary way
    Vec4* own = reinterpret_cast<Vec4*>(memory) + threadIdx.x;
    *const_cast<volatile uint32_t*>(own->word) = own->word[0];
    sync_block();
  }
  float pairs[kSide / 8][4] = {}, sums[T / 8][4] = {};
  if (p.mistake != Mistake::no_arrival) arrive_warpgroup();
  start_along<In, Tile, Tile>(pairs, a, 0, p.mistake == Mistake::parted && warp_of() == 3 ? c : b);
  if (p.mistake == Mistake::overwritten) {
    std::memset(memory, 0, Tile::kBytes);
    sync_block();
  }
  if (p.mistake != Mistake::no_wait) wait_products<0>();
  hold(pairs);
  Packed<kSide / 8> packed;
  pack_sums<In>(pairs, packed);
  arrive_warpgroup();
  start_across<In, Tile>(sums, packed, c);
  wait_products<0>();
  hold(sums);
  add_mistaken_product<In, Tile>(p.mistake, sums, packed, c);
  Sums<1, T / 8>& all = reinterpret_cast<Sums<1, T / 8>&>(sums);
  for_sums<1, T / 8>(
      [&](int m, int n, int i, int row, int column) { p.out[(16 * warp_of() + row) * T + column] = all[m][n][i]; });
}

template <class In>
int start_chain(int columns, const ChainParams& p) {
  return with_width<32, 64, 128>(columns, [&](auto width) {
    constexpr int T = decltype(width)::value;
    const size_t bytes = 2 * kTileAlignment + 3 * SwizzledTile<kSide, T>::kBytes;
    return launch(chain<In, T>, 1, kWarpgroup, bytes, nullptr, p);
  });
}

}  // namespace

int run_chain(bool bf16, int columns, const void* a, const void* b, const void* c, float* out, int mistake) {
  const ChainParams p{a, b, c, out, static_cast<Mistake>(mistake)};
  return bf16 ? start_chain<Bf16>(columns, p) : start_chain<Half>(columns, p);
}

}  // namespace sola::cuda
