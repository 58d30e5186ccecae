// softmax attention, forward: online softmax over blocks of keys, for 16 or 32 queries a warp
//
// With 32 every key and value that is read from shared memory meets twice the queries; with 16 there are more blocks.
// Keys and values are copied asynchronously: the next keys while the values are multiplied, the next values while the
// keys are. Weights go from one product to the next in registers (float: through shared memory).

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/softmax.cuh"

namespace sola::cuda {
namespace {

// MT: times 16 queries of a warp
template <class In, int T, int MT>
struct ForwardTiles {
  static constexpr int kRows = MT * kTile;
  static constexpr int kKeys = T < 128 || (is_half<In> && MT == 1) ? 64 : 32, kStride = kRowStride<In, T>;
  static constexpr int kScratch = kRowStride<In, kKeys>;
  static constexpr size_t kBytes = sizeof(In) * ((kRows + 2 * kKeys) * kStride + (is_half<In> ? 0 : kTile * kScratch));
};

// the running maxima (in units of log 2) and sums of the rows that a lane shares with its quad
template <int MT>
struct Running {
  float maximum[MT][2], sum[MT][2] = {};

  SOLA_DEVICE Running() {
    for (auto& row : maximum) row[0] = row[1] = -INFINITY;
  }
};

// scores (in units of log 2) of one block of keys to weights 2^(score − maximum); returns what earlier sums must be
// multiplied by
template <int MT, int KT>
SOLA_DEVICE void soften(Sums<MT, KT>& scores, Running<MT>& running, float (&rescale)[MT][2]) {
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float best = -INFINITY;
#pragma unroll
      for (int n = 0; n < KT; ++n)
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          best = fmaxf(best, scores[m][n][i]);
        }
      best = fmaxf(best, shuffle_xor(best, 1));
      best = fmaxf(fmaxf(best, shuffle_xor(best, 2)), running.maximum[m][half]);
      // a row of −Inf so far must give 2^−Inf = 0 and not 2^(−Inf + Inf)
      const float shift = best == -INFINITY ? 0.0f : best;
      float total = 0.0f;
#pragma unroll
      for (int n = 0; n < KT; ++n)
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          scores[m][n][i] = fast_exp2(scores[m][n][i] - shift);
          total += scores[m][n][i];
        }
      rescale[m][half] = fast_exp2(running.maximum[m][half] - shift);
      running.sum[m][half] = running.sum[m][half] * rescale[m][half] + quad_sum(total);
      running.maximum[m][half] = best;
    }
}

template <class In, int T, int MT>
SOLA_DEVICE void write_rows(const SoftmaxParams& p, const SoftmaxPlace& at, const Running<MT>& running,
                            Sums<MT, T / 8>& sums, In* staging) {
  // no key at all gives 0; a sum of 0 over existing keys is −Inf scores throughout, where softmax is 0/0
  float inverse[MT][2];
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      inverse[m][half] = p.size.M == 0 ? 0.0f : 1.0f / running.sum[m][half];
      const int row = 16 * (MT * warp_of() + m) + lane_of() / 4 + 8 * half;
      if (lane_of() % 4 == 0 && row < at.rows) {
        static_cast<float*>(p.logsumexp)[int64_t(at.head) * p.size.N + at.first + row] =
            running.maximum[m][half] * kLn2 + logf(running.sum[m][half]);
      }
    }
  for_sums<MT, T / 8>([&](int m, int n, int i, int, int) { sums[m][n][i] *= inverse[m][i / 2]; });
  using Tiles = ForwardTiles<In, T, MT>;
  constexpr int stride = Tiles::kStride;
  sync_block();
  store_sums(sums, staging + 16 * MT * warp_of() * stride, stride);
  sync_block();
  store_tile<Tiles::kRows, T, kThreads>(
      staging, stride, Rows<In>{row_of<In>(p.out, at.batch, at.first, at.inner), p.out.token, at.rows, int(p.size.V)});
}

template <class In, int T, int MT>
__global__ void __launch_bounds__(kThreads, 1) forward(SoftmaxParams p) {
  using Tiles = ForwardTiles<In, T, MT>;
  constexpr int KB = Tiles::kKeys, stride = Tiles::kStride;
  In* q = reinterpret_cast<In*>(shared_memory());
  In* k = q + Tiles::kRows * stride;
  In* v = k + KB * stride;
  In* scratch = v + KB * stride + 16 * warp_of() * Tiles::kScratch;
  const auto at = place_of(p.size, p.size.N, Tiles::kRows);
  const int D = int(p.size.D), V = int(p.size.V);
  const int all = int(p.size.M), visible = p.causal ? min(all, at.first + at.rows) : all;
  const auto copy = [&](const View& view, int columns, int first, In* to) {
    const int rows = max(0, min(KB, visible - first));
    copy_tile<KB, T, kThreads>(
        Rows<const In>{row_of<const In>(view, at.batch, first, at.inner), view.token, rows, columns}, to, stride);
    commit_copies();
  };

  copy_tile<Tiles::kRows, T, kThreads>(
      Rows<const In>{row_of<const In>(p.q, at.batch, at.first, at.inner), p.q.token, at.rows, D}, q, stride);
  copy(p.k, D, 0, k);
  copy(p.v, V, 0, v);
  float sums[MT][T / 8][4];
  clear(sums);
  Running<MT> running;
  const int g = lane_of() / 4;
  const float scale = float(p.scale) * kLog2e;
  for (int first = 0; first < visible; first += KB) {
    wait_copies<1>();
    sync_block();
    float scores[MT][KB / 8][4];
    clear(scores);
    multiply<Along::depth, Along::depth>(scores, Operand<In>{q + 16 * MT * warp_of() * stride, stride},
                                         Operand<In>{k, stride}, T);
    sync_block();
    copy(p.k, D, first + KB, k);
    for_sums<MT, KB / 8>([&](int m, int n, int i, int, int) { scores[m][n][i] *= scale; });
    hide(scores, first, all, p.causal ? at.first + 16 * MT * warp_of() + g : kEverything);
    float rescale[MT][2];
    soften(scores, running, rescale);
    for_sums<MT, T / 8>([&](int m, int n, int i, int, int) { sums[m][n][i] *= rescale[m][i / 2]; });
    wait_copies<1>();
    sync_block();
    multiply_sums<Along::other>(sums, scores, Operand<In>{v, stride}, Operand<In>{scratch, Tiles::kScratch});
    sync_block();
    copy(p.v, V, first + KB, v);
  }
  wait_copies<0>();
  write_rows<In, T, MT>(p, at, running, sums, q);
}

template <class In, int T, int MT>
int start(const SoftmaxParams& p, void* stream) {
  using Tiles = ForwardTiles<In, T, MT>;
  const int64_t blocks = p.size.B * p.size.H * ((p.size.N + Tiles::kRows - 1) / Tiles::kRows);
  return launch(forward<In, T, MT>, blocks, kThreads, Tiles::kBytes, stream, p);
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
