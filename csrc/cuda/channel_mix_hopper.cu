// channel mix, forward, on compute capability 9.0: channel_mix.cu by asynchronous products
//
// A warpgroup has 64 tokens. While tensor cores multiply the squares of one block of hidden units with their columns of
// V, they compute the next, and its weights are copied. Squares stay in registers, where they are left operands.

#include "cuda/channel_mix.cuh"
#include "cuda/kernels.h"
#include "cuda/swizzled.cuh"

namespace sola::cuda {
namespace {

template <int T>
struct MixTiles {
  static constexpr int kGroups = T > 64 && T <= 128 ? 3 : 2, kRows = 64 * kGroups, kBlock = kWarpgroup * kGroups;
  static constexpr int kUnits = 64, kWidth = T == 96 ? 128 : T;
  // of a multiprocessor: where sums leave registers for two, one waits for its tokens while the other multiplies
  static constexpr int kBlocks = T <= 64 ? 2 : 1;
  using Tokens = SwizzledTile<kRows, kWidth>;
  using Keys = SwizzledTile<kUnits, kWidth>;
  using Values = SwizzledTile<T, kUnits>;
  static constexpr uint32_t kWeights = 2 * Tokens::kBytes, kStage = Keys::kBytes + Values::kBytes;
  static constexpr uint32_t kBytes = kTileAlignment + kWeights + 2 * kStage;
};

// what a block copies, and where to: tokens as they enter hidden units and gates, and two steps' weights
template <class In, int T>
struct MixCopies {
  using Tiles = MixTiles<T>;
  const ChannelMixParams& p;
  unsigned char* memory;
  int64_t first;
  int tokens;
  MixWeights<In, Tiles::kUnits> weights;

  SOLA_DEVICE explicit MixCopies(const ChannelMixParams& params)
      : p(params),
        memory(aligned_memory()),
        first(int64_t(blockIdx.x) * Tiles::kRows),
        tokens(int(min(int64_t(Tiles::kRows), params.N - first))),
        weights(params) {}

  SOLA_DEVICE static uint32_t keys_at(int step) { return Tiles::kWeights + step % 2 * Tiles::kStage; }
  SOLA_DEVICE static uint32_t values_at(int step) { return keys_at(step) + Tiles::Keys::kBytes; }
  SOLA_DEVICE uint32_t place(uint32_t at) const { return operand_place(memory) + at / 16; }

  template <class Tile>
  SOLA_DEVICE static void copy(const Rows<const In>& from, unsigned char* to) {
    // threads that go down by whole patterns
    constexpr int kAcross = Tile::kColumns / 8, kDown = Tiles::kBlock / kAcross / 8 * 8, kCopying = kDown * kAcross;
    if (kCopying == Tiles::kBlock || int(threadIdx.x) < kCopying) copy_swizzled<Tile, kCopying>(from, to);
  }
  SOLA_DEVICE void copy_tokens(bool gates) const {
    const auto& from = gates ? p.x_r : p.x_k;
    copy<typename Tiles::Tokens>(rows_of<In>(from.data, from.stride, first, 0, tokens, p.C),
                                 memory + gates * Tiles::Tokens::kBytes);
  }
  SOLA_DEVICE void copy_keys(int step) const {
    if (step < weights.steps) copy<typename Tiles::Keys>(weights.rows(step), memory + keys_at(step));
  }
  SOLA_DEVICE void copy_values(int step) const {
    copy<typename Tiles::Values>(weights.columns(step), memory + values_at(step));
  }
};

template <class In, int T>
__global__ void __launch_bounds__(MixTiles<T>::kBlock, MixTiles<T>::kBlocks) mix_forward(ChannelMixParams p) {
  using Tiles = MixTiles<T>;
  using Tokens = typename Tiles::Tokens;
  using Keys = typename Tiles::Keys;
  using Values = typename Tiles::Values;
  constexpr int UT = Tiles::kUnits / 8;
  const MixCopies<In, T> copies(p);
  const int own = 64 * warpgroup_of(), hidden = copies.weights.hidden;
  float sums[1][T / 8][4], units[1][UT][4];
  Packed<UT> squares;
  clear(sums);
  // until what has been copied can be multiplied; the next weights follow
  const auto await = [&](int step) {
    await_tiles();
    copies.copy_keys(step + 1);
    if (step < hidden) copies.copy_values(step);
    commit_copies();
  };
  const auto start_units = [&](int step, uint32_t tokens) {
    hold(units[0]);
    arrive_warpgroup();
    start_along<In, Tokens, Keys, T>(units[0], copies.place(tokens), own, copies.place(copies.keys_at(step)));
  };
  const auto start_sums = [&](int step) {
    hold(sums[0]);
    arrive_warpgroup();
    start_along<In, Values>(sums[0], squares, copies.place(copies.values_at(step)));
  };

  copies.copy_tokens(false);
  copies.copy_keys(0);
  commit_copies();
  await(0);
  copies.copy_tokens(true);
  commit_copies();
  start_units(0, 0);
  wait_products<0>();
  hold(units[0]);
  square_units(units, copies.weights.count(0));
  pack_sums<In>(units[0], squares);
  for (int step = 1; step < hidden; ++step) {
    await(step);
    start_units(step, 0);
    start_sums(step - 1);
    wait_products<1>();
    hold(units[0]);
    square_units(units, copies.weights.count(step));
    hold(units[0]);
    begin_basic_block(p.N < 0);
    wait_products<0>();
    hold(sums[0]);
    pack_sums<In>(units[0], squares);
  }
  await(hidden);
  start_sums(hidden - 1);
#pragma unroll
  for (int gate = 0; gate < (T + Tiles::kUnits - 1) / Tiles::kUnits; ++gate) {
    if (gate > 0) await(hidden + gate);
    start_units(hidden + gate, Tokens::kBytes);
    wait_products<0>();
    hold(units[0]);
    hold(sums[0]);
#pragma unroll
    for (int n = 0; n < UT && gate * UT + n < T / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[0][gate * UT + n][i] *= sigmoid(units[0][n][i]);
  }
  constexpr int stride = kRowStride<In, T>;
  In* rows = reinterpret_cast<In*>(copies.memory);
  sync_block();
  store_sums(sums, rows + 16 * warp_of() * stride, stride);
  sync_block();
  store_tile<Tiles::kRows, T, Tiles::kBlock>(rows, stride, out_rows<In>(p, copies.first, copies.tokens));
}

template <class In, int T>
int start(const ChannelMixParams& p, void* stream) {
  using Tiles = MixTiles<T>;
  return launch(mix_forward<In, T>, (p.N + Tiles::kRows - 1) / Tiles::kRows, Tiles::kBlock, Tiles::kBytes, stream, p);
}

}  // namespace

int launch_hopper_channel_mix(const ChannelMixParams& p, Dtype dtype, void* stream) {
  return with_mix_width(p, dtype,
                        [&](auto in, auto width) { return start<decltype(in), decltype(width)::value>(p, stream); });
}

}  // namespace sola::cuda
