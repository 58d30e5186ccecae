// channel mix, forward, by warps of 16 or 32 tokens (channel_mix.cuh): weights are copied asynchronously, a step ahead

#include "cuda/channel_mix.cuh"
#include "cuda/kernels.h"

namespace sola::cuda {
namespace {

// MT: times 16 tokens of a warp
template <class In, int T>
struct MixTiles {
  static constexpr int kRows = mix_rows(T), MT = kRows / kTile, kUnits = 32;
  static constexpr int kStride = kRowStride<In, T>, kValueStride = kRowStride<In, kUnits>;
  // of the weights of one step
  static constexpr int kStage = kUnits * kStride + T * kValueStride;
  static constexpr size_t kBytes = sizeof(In) * (kRows * kStride + 2 * kStage);
};

template <int kRows, int kColumns, class In>
SOLA_DEVICE void copy_rows(Rows<const In> from, In* to, int stride) {
  constexpr int kAcross = kColumns / kVector<In>;
  static_assert(kRows * kAcross % kThreads == 0);
#pragma unroll
  for (int n = 0; n < kRows * kAcross; n += kThreads) {
    const int i = n + int(threadIdx.x), row = i / kAcross, column = i % kAcross * kVector<In>;
    const bool exists = row < from.rows && column < from.columns;
    copy_async(to + row * stride + column, exists ? from.data + row * from.stride + column : from.data, exists);
  }
}

template <class In, int T>
__global__ void __launch_bounds__(kThreads, 2) mix_forward(ChannelMixParams p) {
  using Tiles = MixTiles<In, T>;
  constexpr int MT = Tiles::MT, U = Tiles::kUnits, stride = Tiles::kStride;
  In* x = reinterpret_cast<In*>(shared_memory());
  const Operand<In> own{x + 16 * MT * warp_of() * stride, stride};
  const int64_t first = int64_t(blockIdx.x) * Tiles::kRows;
  const int tokens = int(min(int64_t(Tiles::kRows), p.N - first));
  const MixWeights<In, U> weights(p);
  const auto keys = [&](int step) { return x + Tiles::kRows * stride + step % 2 * Tiles::kStage; };
  const auto values = [&](int step) { return keys(step) + U * stride; };
  const auto copy_tokens = [&](const sola::Rows& from) {
    copy_rows<Tiles::kRows, T>(rows_of<In>(from.data, from.stride, first, 0, tokens, p.C), x, stride);
  };
  const auto copy_weights = [&](int step) {
    if (step >= weights.steps) return;
    copy_rows<U, T>(weights.rows(step), keys(step), stride);
    if (step < weights.hidden) copy_rows<T, U>(weights.columns(step), values(step), Tiles::kValueStride);
    commit_copies();
  };
  // until the weights of a step have come; those of the next follow
  const auto await = [&](int step) {
    wait_copies<0>();
    sync_block();
    copy_weights(step + 1);
  };

  copy_tokens(p.x_k);
  copy_weights(0);
  prefetch_rows<T, kThreads>(rows_of<In>(p.x_r.data, p.x_r.stride, first, 0, tokens, p.C));
  float sums[MT][T / 8][4], units[MT][U / 8][4];
  clear(sums);
  for (int step = 0; step < weights.hidden; ++step) {
    await(step);
    clear(units);
    multiply<Along::depth, Along::depth>(units, own, Operand<In>{keys(step), stride}, T);
    square_units(units, weights.count(step));
    multiply_sums<Along::depth>(sums, units, Operand<In>{values(step), Tiles::kValueStride}, Operand<In>{});
  }
  sync_block();
  copy_tokens(p.x_r);
  commit_copies();
#pragma unroll
  for (int gate = 0; gate < T / U; ++gate) {
    const int step = weights.hidden + gate;
    if (step >= weights.steps) break;
    await(step);
    clear(units);
    multiply<Along::depth, Along::depth>(units, own, Operand<In>{keys(step), stride}, T);
    for_sums<MT, U / 8>(
        [&](int m, int n, int i, int, int) { sums[m][gate * (U / 8) + n][i] *= sigmoid(units[m][n][i]); });
  }
  wait_copies<0>();
  sync_block();
  store_sums(sums, const_cast<In*>(own.data), stride);
  sync_block();
  store_tile<Tiles::kRows, T, kThreads>(x, stride, out_rows<In>(p, first, tokens));
}

template <class In, int T>
int start(const ChannelMixParams& p, void* stream) {
  using Tiles = MixTiles<In, T>;
  return launch(mix_forward<In, T>, (p.N + Tiles::kRows - 1) / Tiles::kRows, kThreads, Tiles::kBytes, stream, p);
}

}  // namespace

int launch_channel_mix(const ChannelMixParams& p, Dtype dtype, void* stream) {
  return with_mix_width(p, dtype,
                        [&](auto in, auto width) { return start<decltype(in), decltype(width)::value>(p, stream); });
}

}  // namespace sola::cuda
