// online softmax: what the forward kernels do with a tile of scores, and how they write their rows
#pragma once

#include "cuda/softmax.cuh"

namespace sola::cuda {

// Scores are kept as the product gives them; 2^(unit · score) is their weight. A scale that is not positive, or so
// small that a float has nothing of it, is multiplied in beforehand: the greatest score has the greatest weight, and
// one of −Inf is never multiplied by 0.
struct ScoreUnit {
  float before, unit;

  SOLA_DEVICE explicit ScoreUnit(double scale)
      : before(float(scale) > 0.0f ? 1.0f : float(scale) * kLog2e),
        unit(float(scale) > 0.0f ? float(scale) * kLog2e : 1.0f) {}

  template <int MT, int KT>
  SOLA_DEVICE void prepare(Sums<MT, KT>& scores) const {
    if (before == 1.0f) return;
    for_sums<MT, KT>([&](int m, int n, int i, int, int) { scores[m][n][i] *= before; });
  }
};

// the running maxima (in units of log 2) and sums of weights of the rows that a lane shares with its quad; a lane's
// sums are of its own columns
template <int MT>
struct Running {
  float maximum[MT][2], sum[MT][2] = {};

  SOLA_DEVICE Running() {
    for (auto& row : maximum) row[0] = row[1] = -INFINITY;
  }
};

// scores of one block of keys to weights 2^(unit · score − maximum); returns what earlier sums must be multiplied by
template <int MT, int KT>
SOLA_DEVICE void soften(Sums<MT, KT>& scores, Running<MT>& running, float (&rescale)[MT][2], float unit) {
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
      best = fmaxf(best, shuffle_xor(best, 2));
      const float maximum = fmaxf(running.maximum[m][half], best * unit);
      // a row of −Inf so far must give 2^−Inf = 0 and not 2^(−Inf + Inf)
      const float shift = maximum == -INFINITY ? 0.0f : maximum;
      float total = 0.0f;
#pragma unroll
      for (int n = 0; n < KT; ++n)
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          scores[m][n][i] = fast_exp2(fmaf(scores[m][n][i], unit, -shift));
          total += scores[m][n][i];
        }
      rescale[m][half] = fast_exp2(running.maximum[m][half] - shift);
      running.sum[m][half] = fmaf(running.sum[m][half], rescale[m][half], total);
      running.maximum[m][half] = maximum;
    }
}

// Rows of outputs, 16·MT to a warp, and their logsumexp; `staging` has room for the block's rows, kRowStride apart.
template <class In, int T, int kRows, int kBlock, int MT>
SOLA_DEVICE void write_rows(const SoftmaxParams& p, const SoftmaxPlace& at, const Running<MT>& running,
                            Sums<MT, T / 8>& sums, In* staging) {
  // no key at all gives 0; a sum of 0 over existing keys is −Inf scores throughout, where softmax is 0/0
  float inverse[MT][2];
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = quad_sum(running.sum[m][half]);
      inverse[m][half] = p.size.M == 0 ? 0.0f : 1.0f / sum;
      const int row = 16 * (MT * warp_of() + m) + lane_of() / 4 + 8 * half;
      if (lane_of() % 4 == 0 && row < at.rows) {
        static_cast<float*>(p.logsumexp)[int64_t(at.head) * p.size.N + at.first + row] =
            running.maximum[m][half] * kLn2 + logf(sum);
      }
    }
  for_sums<MT, T / 8>([&](int m, int n, int i, int, int) { sums[m][n][i] *= inverse[m][i / 2]; });
  constexpr int stride = kRowStride<In, T>;
  sync_block();
  store_sums(sums, staging + 16 * MT * warp_of() * stride, stride);
  sync_block();
  store_tile<kRows, T, kBlock>(
      staging, stride, Rows<In>{row_of<In>(p.out, at.batch, at.first, at.inner), p.out.token, at.rows, int(p.size.V)});
}

}  // namespace sola::cuda
