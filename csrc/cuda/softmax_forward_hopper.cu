// softmax attention, forward, of 16-bit types on compute capability 9.0: online softmax between asynchronous products
//
// A warpgroup has 64 queries. While tensor cores multiply the weights of one block of keys with its values, and while
// they compute the scores of the next, the warps turn scores into weights; the next keys and values are copied
// meanwhile, a whole round ahead. Weights stay in registers, where they are the left operand of the second product.
// Order of products as in FlashAttention-3 (arXiv 2407.08608), section 3.2.

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/online_softmax.cuh"
#include "cuda/swizzled.cuh"

namespace sola::cuda {
namespace {

template <int T>
struct HopperTiles {
  static constexpr int kGroups = T < 128 ? 3 : 2, kRows = 64 * kGroups, kBlock = kWarpgroup * kGroups, kKeys = 128;
  using Queries = SwizzledTile<kRows, T>;
  using Keys = SwizzledTile<kKeys, T>;
  static constexpr uint32_t kBytes = kTileAlignment + Queries::kBytes + 4 * Keys::kBytes;
};

// a block's queries, the keys that they see, and where both lie in shared memory
template <class In, int T>
struct Walk {
  using Tiles = HopperTiles<T>;
  using Queries = typename Tiles::Queries;
  using Keys = typename Tiles::Keys;
  static constexpr int KB = Tiles::kKeys;

  const SoftmaxParams& p;
  unsigned char* memory;
  SoftmaxPlace at;
  int visible;
  // of keys by the first warpgroup, of values by the second, of nothing by the third
  TileCopies<Keys, In> copies;

  SOLA_DEVICE explicit Walk(const SoftmaxParams& params)
      : p(params),
        memory(aligned_memory()),
        at(place_of(p.size, p.size.N, Tiles::kRows, p.causal)),
        visible(p.causal ? min(int(p.size.M), at.first + at.rows) : int(p.size.M)),
        copies(my_rows()) {}

  SOLA_DEVICE static bool copies_values() { return warpgroup_of() == 1; }
  SOLA_DEVICE Rows<const In> my_rows() const {
    const View& view = copies_values() ? p.v : p.k;
    return {row_of<const In>(view, at.batch, 0, at.inner), view.token, warpgroup_of() < 2 ? visible : 0,
            int(copies_values() ? p.size.V : p.size.D)};
  }

  SOLA_DEVICE int blocks() const { return (visible + KB - 1) / KB; }
  SOLA_DEVICE uint32_t queries() const { return operand_place(memory); }
  // where keys of a block lie behind the queries, or its values
  SOLA_DEVICE static uint32_t behind(int block, bool values) {
    return Queries::kBytes + uint32_t(2 * values + block % 2) * Keys::kBytes;
  }
  SOLA_DEVICE uint32_t tile(int block, bool values) const { return queries() + behind(block, values) / 16; }

  SOLA_DEVICE void copy_queries() const {
    copy_swizzled<Queries, Tiles::kBlock>(
        Rows<const In>{row_of<const In>(p.q, at.batch, at.first, at.inner), p.q.token, at.rows, int(p.size.D)}, memory);
  }
  // the keys of a block, and the values of the one before
  SOLA_DEVICE void copy(int block) {
    if (block == 0 && copies_values()) return;
    copies.copy(memory + behind(block - copies_values(), copies_values()));
  }
  // scores of a block of keys to weights; returns what earlier sums must be multiplied by
  SOLA_DEVICE void weigh(int block, Sums<1, KB / 8>& scores, Running<1>& running, float (&rescale)[1][2]) const {
    const ScoreUnit unit(p.scale);
    unit.prepare(scores);
    hide(scores, block * KB, int(p.size.M), p.causal ? at.first + 16 * warp_of() + lane_of() / 4 : kEverything);
    soften(scores, running, rescale, unit.unit);
  }
};

template <class In, int T>
__global__ void __launch_bounds__(HopperTiles<T>::kBlock, 1) hopper_forward(SoftmaxParams p) {
  using Tiles = HopperTiles<T>;
  using Queries = typename Tiles::Queries;
  using Keys = typename Tiles::Keys;
  constexpr int KT = Tiles::kKeys / 8;
  Walk<In, T> walk(p);
  walk.copy_queries();
  walk.copy(0);
  commit_copies();
  Running<1> running;
  float sums[1][T / 8][4], scores[1][KT][4], rescale[1][2];
  Packed<KT> weights;
  clear(sums);
  const int own = 64 * warpgroup_of();

  await_tiles();
  walk.copy(1);
  commit_copies();
  arrive_warpgroup();
  start_along<In, Queries, Keys>(scores[0], walk.queries(), own, walk.tile(0, false));
  wait_products<0>();
  hold(scores[0]);
  walk.weigh(0, scores, running, rescale);
  pack_sums<In>(scores[0], weights);
  for (int block = 1; block < walk.blocks(); ++block) {
    await_tiles();
    walk.copy(block + 1);
    commit_copies();
    hold(sums[0]);
    arrive_warpgroup();
    start_along<In, Queries, Keys>(scores[0], walk.queries(), own, walk.tile(block, false));
    start_across<In, Keys>(sums[0], weights, walk.tile(block - 1, true));
    wait_products<1>();
    hold(scores[0]);
    walk.weigh(block, scores, running, rescale);
    hold(scores[0]);
    begin_basic_block(p.size.M < 0);
    wait_products<0>();
    hold(sums[0]);
    for_sums<1, T / 8>([&](int m, int n, int i, int, int) { sums[m][n][i] *= rescale[m][i / 2]; });
    pack_sums<In>(scores[0], weights);
  }
  await_tiles();
  hold(sums[0]);
  arrive_warpgroup();
  start_across<In, Keys>(sums[0], weights, walk.tile(walk.blocks() - 1, true));
  wait_products<0>();
  hold(sums[0]);
  write_rows<In, T, Tiles::kRows, Tiles::kBlock>(p, walk.at, running, sums, reinterpret_cast<In*>(walk.memory));
}

template <class In, int T>
int start(const SoftmaxParams& p, void* stream) {
  using Tiles = HopperTiles<T>;
  const int64_t blocks = p.size.B * p.size.H * ((p.size.N + Tiles::kRows - 1) / Tiles::kRows);
  return launch(hopper_forward<In, T>, blocks, Tiles::kBlock, Tiles::kBytes, stream, p);
}

}  // namespace

int launch_hopper_softmax_forward(const SoftmaxParams& p, Dtype dtype, void* stream) {
  return with_half(dtype, [&](auto in) {
    using In = decltype(in);
    return with_width<32, 64, 128>(max(p.size.D, p.size.V),
                                   [&](auto width) { return start<In, decltype(width)::value>(p, stream); });
  });
}

}  // namespace sola::cuda
