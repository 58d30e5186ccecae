// bidirectional WKV, backward: a stretch of tokens of one channel to a thread
//
// With z = −log(normaliser), the weight of token i in the average at t is e^(k_i + z_t − (|t−i|−1) w), or
// e^(k_t + z_t + u) for itself. Sums over t therefore run as a scan of their own, with z for log-weights:
//
//   P_i = Σ_t e^(z_t …) dy_t     H_i = Σ_t e^(z_t …) h_t     with h = −dy · y
//   dv_i = e^(k_i) P_i           dk_i = v_i dv_i + e^(k_i) H_i
//   du = Σ_i e^(k_i + z_i + u) (v_i dy_i + h_i)
//   dw = −Σ_t e^(z_t) (dy_t Σ_i distance · weight · v_i + h_t Σ_i distance · weight)
//
// so dw needs the scan over the keys again, with its derivative. docs/math.md has the derivation.

#include "cuda/kernels.h"
#include "cuda/wkv_connect.cuh"

namespace sola::cuda {
namespace {

constexpr int kTokens = kWkvBackwardTokens;
using Numbers = Column<kTokens>;
using State = Scans<4, 2>;  // of keys, of gradients
constexpr int kGrads = 6;   // where the second begins

enum Columns {
  kKeyWeights,
  kKeyMaxima,
  kGradWeights,
  kGradMaxima,
  kValues,
  kGradOut,
  kGradLog,
  kFirst,
  kSecond,
  kReference,
  kColumns
};

constexpr size_t bytes(int columns) { return sizeof(float) * columns * kTokens * kWkvThreads; }

template <class In>
SOLA_DEVICE void load_stretch(const WkvParams& p, const WkvPlace& at, const Channel& channel) {
  const auto as_is = [](float x) { return x; };
  const auto tokens_of = [&](const View& view) { return row_of<const In>(view, at.batch, at.begin, 0) + at.channel; };
  const int64_t saved = (at.batch * p.N + at.begin) * p.C + at.channel;
  Numbers{kKeyWeights}.load(tokens_of(p.k), p.k.token, at.tokens, as_is);
  Numbers{kGradWeights}.load(static_cast<const float*>(p.log_normaliser) + saved, p.C, at.tokens,
                             [](float x) { return -x; });
  Numbers{kValues}.load(tokens_of(p.v), p.v.token, at.tokens, as_is);
  const Numbers grad_out(kGradOut), grad_log(kGradLog);
  grad_out.load(tokens_of(p.grad_out), p.grad_out.token, at.tokens, as_is);
  if (p.exact_out) {
    grad_log.load(static_cast<const float*>(p.exact_out) + saved, p.C, at.tokens, as_is);
  } else {
    grad_log.load(tokens_of(p.out), p.out.token, at.tokens, as_is);
  }
  for (int i = 0; i < at.tokens; ++i) grad_log[i] *= -grad_out[i];
  exponentiate(Numbers{kKeyWeights}, Numbers{kKeyMaxima}, at.tokens, channel.tile);
  exponentiate(Numbers{kGradWeights}, Numbers{kGradMaxima}, at.tokens, channel.tile);
}

SOLA_DEVICE ScanTile key_tile(int first, int tokens) {
  return {
      &Numbers{kKeyWeights}[first], &Numbers{kValues}[first], nullptr, Numbers{kKeyMaxima}[first], tokens, kWkvThreads};
}
SOLA_DEVICE ScanTile grad_tile(int first, int tokens) {
  return {&Numbers{kGradWeights}[first],
          &Numbers{kGradOut}[first],
          &Numbers{kGradLog}[first],
          Numbers{kGradMaxima}[first],
          tokens,
          kWkvThreads};
}

template <Direction direction, int K, class Tile>
SOLA_DEVICE void sum_up(const WkvPlace& at, const Channel& channel, Scan<K>& scan, const Tile& tile) {
  for_tiles<direction>(at.tokens, channel.tile, [&](int first, int tokens) {
    scan_tile<direction>(tile(first, tokens), channel, scan, [](int, const float*) {});
  });
}

template <class In>
__global__ void __launch_bounds__(kWkvThreads, 1) gather(WkvWork work) {
  const WkvParams& p = work.op;
  const WkvPlace at = wkv_place<kTokens>(p);
  if (!at.exists) return;
  const Channel channel = load_channel<kTokens>(p, at.channel);
  load_stretch<In>(p, at, channel);
  Scan<4> keys[2];
  Scan<2> grads[2];
  sum_up<Direction::left_to_right>(at, channel, keys[0], key_tile);
  sum_up<Direction::left_to_right>(at, channel, grads[0], grad_tile);
  sum_up<Direction::right_to_left>(at, channel, keys[1], key_tile);
  sum_up<Direction::right_to_left>(at, channel, grads[1], grad_tile);
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    float* to = state_at(work.states, at.batch * p.stretches + at.stretch, side, State::kNumbers, p, at.channel);
    store_scan(keys[side], to, p.C);
    store_scan(grads[side], to + kGrads * p.C, p.C);
  }
}

// Walks over a stretch from the right, keeping values `from` and `from` + 1 of every token, then from the left:
// visit(first, token in the tile, values from the left, factors of the left and right sums) with factors(tile,
// reference) → e^….
template <int from, int K, class Tile, class Factor, class Visit>
SOLA_DEVICE void both_scans(const WkvPlace& at, const Channel& channel, Scan<K>& left, Scan<K>& right,
                            const Tile& tile_at, const Factor& factor, const Visit& visit) {
  for_tiles<Direction::right_to_left>(at.tokens, channel.tile, [&](int first, int tokens) {
    const ScanTile tile = tile_at(first, tokens);
    Numbers{kReference}[first] = reference_in_tile(right, channel, tile.maximum);
    scan_tile<Direction::right_to_left>(tile, channel, right, [&](int i, const float* value) {
      Numbers{kFirst}[first + i] = value[from];
      Numbers{kSecond}[first + i] = value[from + 1];
    });
  });
  for_tiles<Direction::left_to_right>(at.tokens, channel.tile, [&](int first, int tokens) {
    const ScanTile tile = tile_at(first, tokens);
    const float by_left = factor(first, reference_in_tile(left, channel, tile.maximum));
    const float by_right = factor(first, Numbers{kReference}[first]);
    scan_tile<Direction::left_to_right>(tile, channel, left, [&](int i, const float* value) {
      const int t = first + i;
      visit(first, t, by_left * value[from] + by_right * Numbers{kFirst}[t],
            by_left * value[from + 1] + by_right * Numbers{kSecond}[t]);
    });
  });
}

template <class In>
__global__ void __launch_bounds__(kWkvThreads, 1) gradients(WkvWork work) {
  const WkvParams& p = work.op;
  const WkvPlace at = wkv_place<kTokens>(p);
  if (!at.exists) return;
  const Channel channel = load_channel<kTokens>(p, at.channel);
  load_stretch<In>(p, at, channel);
  Scan<4> keys[2];
  Scan<2> grads[2];
  if (p.stretches > 1) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const float* states =
          state_at(work.states, at.batch * p.stretches + at.stretch, side, State::kNumbers, p, at.channel);
      keys[side] = load_scan<4>(states, p.C);
      grads[side] = load_scan<2>(states + kGrads * p.C, p.C);
    }
  }
  In* grad_k = row_of<In>(p.grad_k, at.batch, at.begin, 0) + at.channel;
  In* grad_v = row_of<In>(p.grad_v, at.batch, at.begin, 0) + at.channel;
  const Numbers key_maxima(kKeyMaxima), grad_maxima(kGradMaxima);
  float grad_bonus = 0.0f, grad_decay = 0.0f;
  both_scans<0>(
      at, channel, grads[0], grads[1], grad_tile,
      [&](int first, float reference) { return expf(key_maxima[first] + reference); },
      [&](int first, int t, float P, float H) {
        const float key_weight = Numbers{kKeyWeights}[t], v = Numbers{kValues}[t];
        const float dy = Numbers{kGradOut}[t], h = Numbers{kGradLog}[t];
        const float own = expf(key_maxima[first] + grad_maxima[first] + channel.bonus) * Numbers{kGradWeights}[t];
        P += own * dy;
        H += own * h;
        grad_v[t * p.grad_v.token] = from_float<In>(key_weight * P);
        grad_k[t * p.grad_k.token] = from_float<In>(key_weight * (v * P + H));
        grad_bonus += key_weight * own * (v * dy + h);
      });
  both_scans<2>(
      at, channel, keys[0], keys[1], key_tile,
      [&](int first, float reference) { return expf(grad_maxima[first] + reference); },
      [&](int, int t, float numerator, float denominator) {
        grad_decay -=
            Numbers{kGradWeights}[t] * (Numbers{kGradOut}[t] * numerator + Numbers{kGradLog}[t] * denominator);
      });
  const int64_t row = (at.batch * p.stretches + at.stretch) * p.C + at.channel;
  static_cast<float*>(p.grad_decay)[row] = grad_decay;
  static_cast<float*>(p.grad_bonus)[row] = grad_bonus;
}

constexpr int kSlices = 8;

// 32 channels to a block, and so many threads to a channel
__global__ void __launch_bounds__(kWarp* kSlices, 1) column_sum(ColumnSumParams p) {
  const int64_t channel = int64_t(blockIdx.x) * kWarp + lane_of();
  double sum = 0.0;
  if (channel < p.C) {
    for (int64_t row = warp_of(); row < p.rows; row += kSlices) sum += double(p.from[row * p.C + channel]);
  }
  double* slices = reinterpret_cast<double*>(shared_memory());
  slices[threadIdx.x] = sum;
  sync_block();
  if (warp_of() > 0 || channel >= p.C) return;
  for (int slice = 1; slice < kSlices; ++slice) sum += slices[slice * kWarp + lane_of()];
  p.to[channel] = float(sum);
}

}  // namespace

int launch_column_sum(const ColumnSumParams& p, void* stream) {
  return launch(column_sum, (p.C + kWarp - 1) / kWarp, kWarp * kSlices, sizeof(double) * kWarp * kSlices, stream, p);
}

int launch_wkv_backward(const WkvWork& work, Dtype dtype, void* stream) {
  const WkvParams& p = work.op;
  const int64_t blocks = p.B * p.stretches * ((p.C + kWkvThreads - 1) / kWkvThreads);
  return with_input(dtype, [&](auto in) {
    using In = decltype(in);
    int error = cudaSuccess;
    if (p.stretches > 1) {
      error = launch(gather<In>, blocks, kWkvThreads, bytes(kFirst), stream, work);
      if (error == cudaSuccess) error = launch_connect<State, kTokens>(work, stream);
    }
    return error ? error : launch(gradients<In>, blocks, kWkvThreads, bytes(kColumns), stream, work);
  });
}

}  // namespace sola::cuda
