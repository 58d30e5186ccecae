// softmax attention, backward, of 16-bit types on compute capability 9.0: softmax_backward.cu by asynchronous products
//
// One kernel, twice: a warpgroup has 64 keys and walks over queries for dK and dV, or the other way round for dQ. P and
// dS stay in registers, where they are left operands; what is still to be summed up of one block of columns is
// multiplied while the next is begun. Three blocks of columns are in shared memory: one that is still read, one that is
// worked at, one that is on its way.

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/softmax.cuh"
#include "cuda/swizzled.cuh"

namespace sola::cuda {
namespace {

template <int T, Of of>
struct HopperTiles {
  static constexpr int kGroups = T < (of == Of::keys ? 64 : 128) ? 3 : 2, kRows = 64 * kGroups,
                       kBlock = kWarpgroup * kGroups;
  static constexpr int kColumns = 64, kStages = 3;
  using Rows = SwizzledTile<kRows, T>;
  using Columns = SwizzledTile<kColumns, T>;
  static constexpr uint32_t kPairBytes = 2 * Columns::kBytes;
  static constexpr uint32_t kSaved = 2 * Rows::kBytes + kStages * kPairBytes;
  static constexpr uint32_t kBytes = kTileAlignment + kSaved + kStages * kColumns * uint32_t(sizeof(float2));
};

template <class Tile, int kThreads, class In>
SOLA_DEVICE void copy_side(const View& view, int columns, const SoftmaxPlace& at, int first, int rows,
                           unsigned char* to) {
  copy_swizzled<Tile, kThreads>(
      Rows<const In>{row_of<const In>(view, at.batch, first, at.inner), view.token, rows, columns}, to);
}

// In one function: where ptxas sees these products and what lies between them in another shape, it lets them wait for
// each other (csrc/cuda/report.py looks).
template <class In, int T, Of of>
__global__ void __launch_bounds__(HopperTiles<T, of>::kBlock, 1) hopper_backward(SoftmaxBackwardParams params) {
  using Tiles = HopperTiles<T, of>;
  using RowTile = typename Tiles::Rows;
  using ColumnTile = typename Tiles::Columns;
  constexpr bool keys = of == Of::keys;
  constexpr int CB = Tiles::kColumns, CT = CB / 8, kStages = Tiles::kStages;
  const SoftmaxParams& p = params.op;
  unsigned char* memory = aligned_memory();
  const uint32_t rows = operand_place(memory), columns = rows + 2 * RowTile::kBytes / 16;
  float2* saved = reinterpret_cast<float2*>(memory + Tiles::kSaved);
  const int D = int(p.size.D), V = int(p.size.V), queries = int(p.size.N), all_keys = int(p.size.M);
  const int my_tokens = keys ? all_keys : queries, tokens = keys ? queries : all_keys;
  const SoftmaxPlace at = place_of(p.size, my_tokens, Tiles::kRows, p.causal && !keys);
  // causal: queries see no later keys, keys are seen by no earlier queries
  const int begin = keys && p.causal ? at.first / CB * CB : 0;
  const int end = !keys && p.causal ? min(tokens, at.first + at.rows) : tokens;
  const int blocks = max(0, (end - begin + CB - 1) / CB);

  const float2* of_queries = saved_of(params, at.head);
  // queries or keys by the first warpgroup, with dO or values by the second
  const bool second = warpgroup_of() == 1;
  const View& my_side = second ? (keys ? p.grad_out : p.v) : (keys ? p.q : p.k);
  TileCopies<ColumnTile, In> copies(Rows<const In>{row_of<const In>(my_side, at.batch, begin, at.inner), my_side.token,
                                                   warpgroup_of() < 2 ? end - begin : 0, second ? V : D});
  const auto copy_columns = [&](int block) {
    const int first = begin + block * CB, stage = block % kStages;
    copies.copy(memory + 2 * RowTile::kBytes + stage * Tiles::kPairBytes + second * ColumnTile::kBytes);
    if (keys && int(threadIdx.x) < CB && first < end) {
      copy_two_async(saved + stage * CB + int(threadIdx.x), of_queries + first + int(threadIdx.x),
                     first + int(threadIdx.x) < end);
    }
  };
  copy_side<RowTile, Tiles::kBlock, In>(keys ? p.k : p.q, D, at, at.first, at.rows, memory);
  copy_side<RowTile, Tiles::kBlock, In>(keys ? p.v : p.grad_out, V, at, at.first, at.rows, memory + RowTile::kBytes);
  copy_columns(0);
  commit_copies();

  const int first_row = at.first + 16 * warp_of() + lane_of() / 4, t = lane_of() % 4;
  float2 of_row[2] = {};
  if (!keys) {
    if (first_row < queries) of_row[0] = of_queries[first_row];
    if (first_row + 8 < queries) of_row[1] = of_queries[first_row + 8];
  }
  const float unit = float(p.scale) * kLog2e;
  float one[1][T / 8][4], two[1][keys ? T / 8 : 4][4], weights[1][CT][4], grads[1][CT][4];
  Packed<CT> left_one, left_two;
  clear(one);
  clear(two);
  for (int block = 0; block < blocks; ++block) {
    const int stage = block % kStages, first = begin + block * CB;
    const uint32_t column = columns + stage * (Tiles::kPairBytes / 16);
    await_tiles();
    copy_columns(block + 1);
    commit_copies();
    hold(weights[0]);
    arrive_warpgroup();
    start_along<In, RowTile, ColumnTile>(weights[0], rows, 64 * warpgroup_of(), column);
    // when the sums of the last block are done, registers of their operands are free for the second product
    wait_products<1>();
    hold(grads[0]);
    arrive_warpgroup();
    start_along<In, RowTile, ColumnTile>(grads[0], rows + RowTile::kBytes / 16, 64 * warpgroup_of(),
                                         column + ColumnTile::kBytes / 16);
    wait_products<1>();
    hold(weights[0]);
    const float2* of_column = saved + stage * CB + 2 * t;
    // only blocks at the end of columns, or at the diagonal, have pairs that nobody sees
    const bool whole =
        first + CB <= tokens && !(p.causal && (keys ? first < at.first + Tiles::kRows : first + CB > at.first));
    const auto visible = [&](int n, int i) {
      const int row = first_row + i / 2 * 8, other = first + 8 * n + 2 * t + i % 2;
      return other < tokens && !(p.causal && (keys ? row > other : other > row));
    };
    for_sums<1, CT>([&](int, int n, int i, int, int) {
      const float lse = keys ? of_column[8 * n + i % 2].x : of_row[i / 2].x;
      weights[0][n][i] = fast_exp2(fmaf(weights[0][n][i], unit, -lse));
    });
    if (!whole) {
      for_sums<1, CT>([&](int, int n, int i, int, int) {
        if (!visible(n, i)) weights[0][n][i] = 0.0f;
      });
    }
    wait_products<0>();
    hold(grads[0]);
    for_sums<1, CT>([&](int, int n, int i, int, int) {
      const float delta = keys ? of_column[8 * n + i % 2].y : of_row[i / 2].y;
      grads[0][n][i] = weights[0][n][i] * (grads[0][n][i] - delta);
    });
    if (!whole) {
      for_sums<1, CT>([&](int, int n, int i, int, int) {
        if (!visible(n, i)) grads[0][n][i] = 0.0f;
      });
    }
    pack_sums<In>(grads[0], left_one);
    hold(one[0]);
    if constexpr (keys) {
      pack_sums<In>(weights[0], left_two);
      hold(two[0]);
    }
    arrive_warpgroup();
    start_across<In, ColumnTile>(one[0], left_one, column);
    if constexpr (keys) start_across<In, ColumnTile>(two[0], left_two, column + ColumnTile::kBytes / 16);
  }
  wait_products<0>();
  hold(one[0]);
  if constexpr (keys) hold(two[0]);
  wait_copies<0>();
  const float scale = float(p.scale);
  for_sums<1, T / 8>([&](int, int n, int i, int, int) { one[0][n][i] *= scale; });
  write_gradients<In, T, Tiles::kRows, Tiles::kBlock>(one, memory, keys ? p.grad_k : p.grad_q, at, D);
  if constexpr (keys) write_gradients<In, T, Tiles::kRows, Tiles::kBlock>(two, memory, p.grad_v, at, V);
}

template <class In, int T, Of of>
int start(const SoftmaxBackwardParams& p, void* stream) {
  using Tiles = HopperTiles<T, of>;
  const AttentionSizes& s = p.op.size;
  const int64_t tokens = of == Of::keys ? s.M : s.N, tiles = (tokens + Tiles::kRows - 1) / Tiles::kRows;
  return launch(hopper_backward<In, T, of>, s.B * s.H * tiles, Tiles::kBlock, Tiles::kBytes, stream, p);
}

}  // namespace

int launch_hopper_softmax_backward(const SoftmaxBackwardParams& p, Dtype dtype, void* stream) {
  return with_half(dtype, [&](auto in) {
    using In = decltype(in);
    return with_width<32, 64, 128>(max(p.op.size.D, p.op.size.V), [&](auto width) {
      constexpr int T = decltype(width)::value;
      const int failed = start<In, T, Of::keys>(p, stream);
      return failed ? failed : start<In, T, Of::queries>(p, stream);
    });
  });
}

}  // namespace sola::cuda
