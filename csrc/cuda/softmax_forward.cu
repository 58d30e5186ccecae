// softmax attention, forward: online softmax over blocks of keys for 16 queries a warp
//
// Keys and values are copied asynchronously: the next keys while the values are multiplied, the next values while the
// keys are. Weights go from one product to the next in registers (float: through shared memory).

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/softmax.cuh"

namespace sola::cuda {
namespace {

template <class In, int T>
struct ForwardTiles {
  static constexpr int kKeys = is_half<In> || T < 128 ? 64 : 32, kStride = kRowStride<In, T>;
  static constexpr int kScratch = kRowStride<In, kKeys>;
  static constexpr size_t kBytes = sizeof(In) * ((kTile + 2 * kKeys) * kStride + (is_half<In> ? 0 : kTile * kScratch));
};

// the running maximum (in units of log 2) and sum of the two rows that a lane shares with its quad
struct Running {
  float maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {};
};

// scores (in units of log 2) of one block of keys to weights 2^(score − maximum); returns what earlier sums must be
// multiplied by
template <int KT>
SOLA_DEVICE void soften(Sums<1, KT>& scores, Running& running, float (&rescale)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float best = -INFINITY;
#pragma unroll
    for (int n = 0; n < KT; ++n)
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        best = fmaxf(best, scores[0][n][i]);
      }
    best = fmaxf(best, shuffle_xor(best, 1));
    best = fmaxf(fmaxf(best, shuffle_xor(best, 2)), running.maximum[half]);
    // a row of −Inf so far must give 2^−Inf = 0 and not 2^(−Inf + Inf)
    const float shift = best == -INFINITY ? 0.0f : best;
    float total = 0.0f;
#pragma unroll
    for (int n = 0; n < KT; ++n)
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        scores[0][n][i] = fast_exp2(scores[0][n][i] - shift);
        total += scores[0][n][i];
      }
    rescale[half] = fast_exp2(running.maximum[half] - shift);
    running.sum[half] = running.sum[half] * rescale[half] + quad_sum(total);
    running.maximum[half] = best;
  }
}

template <class In, int T>
SOLA_DEVICE void write_rows(const SoftmaxParams& p, const SoftmaxPlace& at, const Running& running,
                            Sums<1, T / 8>& sums, In* staging) {
  // no key at all gives 0; a sum of 0 over existing keys is −Inf scores throughout, where softmax is 0/0
  float inverse[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    inverse[half] = p.size.M == 0 ? 0.0f : 1.0f / running.sum[half];
    const int row = 16 * warp_of() + lane_of() / 4 + 8 * half;
    if (lane_of() % 4 == 0 && row < at.rows) {
      static_cast<float*>(p.logsumexp)[at.head * p.size.N + at.first + row] =
          running.maximum[half] * kLn2 + logf(running.sum[half]);
    }
  }
  for_sums<1, T / 8>([&](int m, int n, int i, int, int) { sums[m][n][i] *= inverse[i / 2]; });
  constexpr int stride = ForwardTiles<In, T>::kStride;
  sync_block();
  store_sums(sums, staging + 16 * warp_of() * stride, stride);
  sync_block();
  store_tile<kTile, T, kThreads>(
      staging, stride, Rows<In>{row_of<In>(p.out, at.batch, at.first, at.inner), p.out.token, at.rows, int(p.size.V)});
}

template <class In, int T>
__global__ void __launch_bounds__(kThreads, 1) forward(SoftmaxParams p) {
  using Tiles = ForwardTiles<In, T>;
  constexpr int KB = Tiles::kKeys, stride = Tiles::kStride;
  In* q = reinterpret_cast<In*>(shared_memory());
  In* k = q + kTile * stride;
  In* v = k + KB * stride;
  In* scratch = v + KB * stride + 16 * warp_of() * Tiles::kScratch;
  const auto at = place_of(p.size, p.size.N, kTile);
  const int D = int(p.size.D), V = int(p.size.V);
  const int64_t visible = p.causal ? min(p.size.M, at.first + at.rows) : p.size.M;
  const auto keys = [&](int64_t first) {
    const int rows = int(max(int64_t(0), min(int64_t(KB), visible - first)));
    copy_tile<KB, T, kThreads>(Rows<const In>{row_of<const In>(p.k, at.batch, first, at.inner), p.k.token, rows, D}, k,
                               stride);
    commit_copies();
  };
  const auto values = [&](int64_t first) {
    const int rows = int(max(int64_t(0), min(int64_t(KB), visible - first)));
    copy_tile<KB, T, kThreads>(Rows<const In>{row_of<const In>(p.v, at.batch, first, at.inner), p.v.token, rows, V}, v,
                               stride);
    commit_copies();
  };

  copy_tile<kTile, T, kThreads>(
      Rows<const In>{row_of<const In>(p.q, at.batch, at.first, at.inner), p.q.token, at.rows, D}, q, stride);
  keys(0);
  values(0);
  float sums[1][T / 8][4];
  clear(sums);
  Running running;
  const int g = lane_of() / 4;
  const float scale = float(p.scale) * kLog2e;
  for (int64_t first = 0; first < visible; first += KB) {
    wait_copies<1>();
    sync_block();
    float scores[1][KB / 8][4];
    clear(scores);
    multiply<Along::depth, Along::depth>(scores, Operand<In>{q + 16 * warp_of() * stride, stride},
                                         Operand<In>{k, stride}, T);
    sync_block();
    keys(first + KB);
    for_sums<1, KB / 8>([&](int m, int n, int i, int, int) { scores[m][n][i] *= scale; });
    hide(scores, first, p.size.M, p.causal ? at.first + 16 * warp_of() + g : kEverything);
    float rescale[2];
    soften(scores, running, rescale);
    for_sums<1, T / 8>([&](int m, int n, int i, int, int) { sums[m][n][i] *= rescale[i / 2]; });
    wait_copies<1>();
    sync_block();
    multiply_sums<Along::other>(sums, scores, Operand<In>{v, stride}, Operand<In>{scratch, Tiles::kScratch});
    sync_block();
    values(first + KB);
  }
  wait_copies<0>();
  write_rows<In, T>(p, at, running, sums, q);
}

}  // namespace

int launch_softmax_forward(const SoftmaxParams& p, Dtype dtype, void* stream) {
  return with_input(dtype, [&](auto in) {
    using In = decltype(in);
    return with_width<32, 64, 128, 256>(max(p.size.D, p.size.V), [&](auto width) {
      constexpr int T = decltype(width)::value;
      const int64_t blocks = p.size.B * p.size.H * ((p.size.N + kTile - 1) / kTile);
      return launch(forward<In, T>, blocks, kThreads, ForwardTiles<In, T>::kBytes, stream, p);
    });
  });
}

}  // namespace sola::cuda
