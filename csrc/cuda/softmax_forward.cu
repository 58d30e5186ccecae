// softmax attention, forward: online softmax over blocks of keys, for 16 or 32 queries a warp
//
// With 32 every key and value that is read from shared memory meets twice the queries; with 16 there are more blocks.
// Keys and values are copied asynchronously: the next keys while the values are multiplied, the next values while the
// keys are. Weights go from one product to the next in registers (float: through shared memory).

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/online_softmax.cuh"

namespace sola::cuda {
namespace {

// MT: times 16 queries of a warp; kSmall: for devices with little shared memory
template <class In, int T, int MT, bool kSmall>
struct ForwardTiles {
  static constexpr int kWarps = kSmall ? 2 : 4, kRows = 16 * MT * kWarps, kBlock = kWarp * kWarps;
  static constexpr int kKeys = kSmall ? 16 : T < 128 || (is_half<In> && MT == 1) ? 64 : 32;
  static constexpr int kStride = kRowStride<In, T>, kScratch = kRowStride<In, kKeys>;
  static constexpr size_t kBytes =
      sizeof(In) * ((kRows + 2 * kKeys) * kStride + (is_half<In> ? 0 : 16 * kWarps * kScratch));
};

template <class In, int T, int MT, bool kSmall>
__global__ void __launch_bounds__(ForwardTiles<In, T, MT, kSmall>::kBlock, 1) forward(SoftmaxParams p) {
  using Tiles = ForwardTiles<In, T, MT, kSmall>;
  constexpr int KB = Tiles::kKeys, stride = Tiles::kStride;
  In* q = reinterpret_cast<In*>(shared_memory());
  In* k = q + Tiles::kRows * stride;
  In* v = k + KB * stride;
  In* scratch = v + KB * stride + 16 * warp_of() * Tiles::kScratch;
  const auto at = place_of(p.size, p.size.N, Tiles::kRows, p.causal);
  const int D = int(p.size.D), V = int(p.size.V);
  const int all = int(p.size.M), visible = p.causal ? min(all, at.first + at.rows) : all;
  const auto copy = [&](const View& view, int columns, int first, In* to) {
    const int rows = max(0, min(KB, visible - first));
    copy_tile<KB, T, Tiles::kBlock>(
        Rows<const In>{row_of<const In>(view, at.batch, first, at.inner), view.token, rows, columns}, to, stride);
    commit_copies();
  };

  copy_tile<Tiles::kRows, T, Tiles::kBlock>(
      Rows<const In>{row_of<const In>(p.q, at.batch, at.first, at.inner), p.q.token, at.rows, D}, q, stride);
  copy(p.k, D, 0, k);
  copy(p.v, V, 0, v);
  float sums[MT][T / 8][4];
  clear(sums);
  Running<MT> running;
  const int g = lane_of() / 4;
  const ScoreUnit unit(p.scale);
  for (int first = 0; first < visible; first += KB) {
    wait_copies<1>();
    sync_block();
    float scores[MT][KB / 8][4];
    clear(scores);
    multiply<Along::depth, Along::depth>(scores, Operand<In>{q + 16 * MT * warp_of() * stride, stride},
                                         Operand<In>{k, stride}, T);
    sync_block();
    copy(p.k, D, first + KB, k);
    unit.prepare(scores);
    hide(scores, first, all, p.causal ? at.first + 16 * MT * warp_of() + g : kEverything);
    float rescale[MT][2];
    soften(scores, running, rescale, unit.unit);
    for_sums<MT, T / 8>([&](int m, int n, int i, int, int) { sums[m][n][i] *= rescale[m][i / 2]; });
    wait_copies<1>();
    sync_block();
    multiply_sums<Along::other>(sums, scores, Operand<In>{v, stride}, Operand<In>{scratch, Tiles::kScratch});
    sync_block();
    copy(p.v, V, first + KB, v);
  }
  wait_copies<0>();
  write_rows<In, T, Tiles::kRows, Tiles::kBlock>(p, at, running, sums, q);
}

template <class In, int T, int MT, bool kSmall = false>
int start(const SoftmaxParams& p, void* stream) {
  using Tiles = ForwardTiles<In, T, MT, kSmall>;
  if constexpr (Tiles::kBytes > kLeastShared) {
    static_assert(!kSmall);
    if (!has_shared(Tiles::kBytes)) return start<In, T, MT, true>(p, stream);
  }
  const int64_t blocks = p.size.B * p.size.H * ((p.size.N + Tiles::kRows - 1) / Tiles::kRows);
  return launch(forward<In, T, MT, kSmall>, blocks, Tiles::kBlock, Tiles::kBytes, stream, p);
}

}  // namespace

int launch_softmax_forward(const SoftmaxParams& p, int rows, Dtype dtype, void* stream) {
  return with_input(dtype, [&](auto in) {
    using In = decltype(in);
    return with_width<32, 64, 128, 256>(max(p.size.D, p.size.V), [&](auto width) {
      constexpr int T = decltype(width)::value;
      if constexpr (is_half<In> && T <= kWideSoftmax) {
        if (rows > kTile) return start<In, T, 2>(p, stream);
      }
      return start<In, T, 1>(p, stream);
    });
  });
}

}  // namespace sola::cuda
