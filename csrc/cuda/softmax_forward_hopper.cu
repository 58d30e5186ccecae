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

template <class In, int T>
__global__ void __launch_bounds__(HopperTiles<T>::kBlock, 1) hopper_forward(SoftmaxParams p) {
  using Tiles = HopperTiles<T>;
  using Queries = typename Tiles::Queries;
  using Keys = typename Tiles::Keys;
  constexpr int KB = Tiles::kKeys, KT = KB / 8;
  constexpr uint32_t kTileBytes = Keys::kBytes;
  unsigned char* memory = aligned_memory();
  const uint32_t q = shared_address(memory), k = q + Queries::kBytes, v = k + 2 * kTileBytes;
  const auto at = place_of(p.size, p.size.N, Tiles::kRows);
  const int all = int(p.size.M), visible = p.causal ? min(all, at.first + at.rows) : all;
  const int D = int(p.size.D), V = int(p.size.V), blocks = (visible + KB - 1) / KB;
  const auto copy_keys = [&](const View& view, int columns, int block, uint32_t to) {
    const int rows = min(KB, visible - block * KB);
    if (rows <= 0) return;
    copy_swizzled<Keys, Tiles::kBlock>(
        Rows<const In>{row_of<const In>(view, at.batch, block * KB, at.inner), view.token, rows, columns},
        memory + (to - q) + block % 2 * kTileBytes);
  };
  const auto arrived = [&] {
    wait_copies<0>();
    publish_to_tensor_cores();
    sync_block();
  };

  copy_swizzled<Queries, Tiles::kBlock>(
      Rows<const In>{row_of<const In>(p.q, at.batch, at.first, at.inner), p.q.token, at.rows, D}, memory);
  copy_keys(p.k, D, 0, k);
  commit_copies();
  const ScoreUnit unit(p.scale);
  Running<1> running;
  float sums[1][T / 8][4], scores[1][KT][4], rescale[1][2];
  Packed<KT> weights;
  clear(sums);
  const int query = p.causal ? at.first + 16 * warp_of() + lane_of() / 4 : kEverything;
  const auto weigh_scores = [&](int block) {
    unit.prepare(scores);
    hide(scores, block * KB, all, query);
    soften(scores, running, rescale, unit.unit);
  };

  arrived();
  copy_keys(p.k, D, 1, k);
  copy_keys(p.v, V, 0, v);
  commit_copies();
  arrive_warpgroup();
  start_along<In, Queries, Keys>(scores[0], q, 64 * warpgroup_of(), k);
  wait_products<0>();
  hold(scores[0]);
  weigh_scores(0);
  pack_sums<In>(scores[0], weights);
  for (int block = 1; block < blocks; ++block) {
    arrived();
    copy_keys(p.k, D, block + 1, k);
    copy_keys(p.v, V, block, v);
    commit_copies();
    hold(sums[0]);
    arrive_warpgroup();
    start_along<In, Queries, Keys>(scores[0], q, 64 * warpgroup_of(), k + block % 2 * kTileBytes);
    start_across<In, Keys>(sums[0], weights, v + (block - 1) % 2 * kTileBytes);
    wait_products<1>();
    hold(scores[0]);
    weigh_scores(block);
    hold(scores[0]);
    begin_basic_block(all < 0);
    wait_products<0>();
    hold(sums[0]);
    for_sums<1, T / 8>([&](int m, int n, int i, int, int) { sums[m][n][i] *= rescale[m][i / 2]; });
    pack_sums<In>(scores[0], weights);
  }
  arrived();
  hold(sums[0]);
  arrive_warpgroup();
  start_across<In, Keys>(sums[0], weights, v + (blocks - 1) % 2 * kTileBytes);
  wait_products<0>();
  hold(sums[0]);
  write_rows<In, T, Tiles::kRows, Tiles::kBlock>(p, at, running, sums, reinterpret_cast<In*>(memory));
}

template <class In, int T>
int start(const SoftmaxParams& p, void* stream) {
  using Tiles = HopperTiles<T>;
  const int64_t blocks = p.size.B * p.size.H * ((p.size.N + Tiles::kRows - 1) / Tiles::kRows);
  return launch(hopper_forward<In, T>, blocks, Tiles::kBlock, Tiles::kBytes, stream, p);
}

}  // namespace

int launch_hopper_softmax_forward(const SoftmaxParams& p, Dtype dtype, void* stream) {
  const auto with = [&](auto in) {
    using In = decltype(in);
    return with_width<32, 64, 128>(max(p.size.D, p.size.V),
                                   [&](auto width) { return start<In, decltype(width)::value>(p, stream); });
  };
  return dtype == Dtype::bf16 ? with(Bf16{}) : with(Half{});
}

}  // namespace sola::cuda
