// bidirectional WKV, backward
//
// With z = −log(normaliser), the weight of token i in the average at t is e^(k_i + z_t − (|t−i|−1) w), or
// e^(k_t + z_t + u) for itself. Sums over t therefore run as a scan of their own, with z for log-weights, beside the
// one over the keys with v and 1 (N and D, on the left and the right of a token):
//
//   P_i = Σ_t e^(z_t …) dy_t     H_i = Σ_t e^(z_t …) h_t     with h = −dy · y
//   dv_i = e^(k_i) P_i           dk_i = v_i dv_i + e^(k_i) H_i
//   du = Σ_i e^(k_i + z_i + u) (v_i dy_i + h_i)
//   dw = −e^(−w) Σ_c (N_left P_right + D_left H_right + N_right P_left + D_right H_left)
//
// where P_left and the others hold what lies on one side of c. docs/math.md has the derivation.

#include "cuda/kernels.h"
#include "cuda/wkv_connect.cuh"

namespace sola::cuda {
namespace {

constexpr int T = kWkvBackwardTokens;
static_assert(TwoScans::kNumbers == kWkvBackwardNumbers);

// a lane's tokens: weights and values of the keys' scan and of the gradients'
struct Tokens {
  using State = TwoScans;
  using Place = WkvPlace<T>;
  static constexpr int kTokens = T;
  float keys[T], values[T], key_maximum;
  float logs[T], grads[T], log_grads[T], log_maximum;

  template <class In>
  SOLA_DEVICE void load(const WkvWork& work, const Place& at, const Channel& channel) {
    const WkvParams& p = work.op;
    at.load<In>(p.k, keys);
    at.load<In>(p.v, values);
    at.load<In>(p.grad_out, grads);
    at.load(static_cast<const float*>(p.log_normaliser) + at.in_plane(work), p.C, logs);
    if (p.exact_out) {
      at.load(static_cast<const float*>(p.exact_out) + at.in_plane(work), p.C, log_grads);
    } else {
      at.load<In>(p.out, log_grads);
    }
#pragma unroll
    for (int i = 0; i < T; ++i) {
      logs[i] = -logs[i];
      log_grads[i] *= -grads[i];
    }
    key_maximum = exponentiate(keys, at.tokens, channel);
    log_maximum = exponentiate(logs, at.tokens, channel);
  }
  template <Direction direction, class Visit>
  SOLA_DEVICE void scan_keys(const Channel& channel, Scan& scan, const Visit& visit) const {
    scan_tokens<direction>(keys, key_maximum, values, Ones{}, channel, scan, visit);
  }
  template <Direction direction, class Visit>
  SOLA_DEVICE void scan_grads(const Channel& channel, Scan& scan, const Visit& visit) const {
    scan_tokens<direction>(logs, log_maximum, grads, log_grads, channel, scan, visit);
  }
  template <Direction direction>
  SOLA_DEVICE TwoScans sum(const Channel& channel) const {
    return {sum_tokens<direction>(keys, key_maximum, values, Ones{}, channel),
            sum_tokens<direction>(logs, log_maximum, grads, log_grads, channel)};
  }
};

// one number of every warp's lanes to the sum over the warps, in their order; warp 0 gets it
SOLA_DEVICE float add_warps(float x) {
  float* numbers = reinterpret_cast<float*>(shared_memory());
  sync_block();
  numbers[threadIdx.x] = x;
  sync_block();
  float sum = 0.0f;
  for (int warp = 0; warp < kWkvWarps; ++warp) sum += numbers[warp * kWarp + lane_of()];
  return sum;
}

SOLA_DEVICE void write_shares(const WkvParams& p, const Tokens::Place& at, float grad_decay, float grad_bonus) {
  if (warp_of() > 0 || !at.exists) return;
  const int64_t row = (at.batch * p.stretches + at.stretch) * p.C + at.channel;
  static_cast<float*>(p.grad_decay)[row] = grad_decay;
  static_cast<float*>(p.grad_bonus)[row] = grad_bonus;
}

template <class In>
__global__ void __launch_bounds__(kWkvThreads, 2) gradients(WkvWork work) {
  const WkvParams& p = work.op;
  const Tokens::Place at(p, block_from_end());
  const Channel channel = at.channel_of(p);
  Tokens tokens;
  tokens.load<In>(work, at, channel);
  const auto states = enter_tokens(tokens, at, work, channel);
  TwoScans right = states.own(1);

  // one of the three doesn't fit in registers beside the others
  KeptSums<TwoScans, T> keys_left(0), grads_right(1);
  KeptSums<TwoScans, T, InSharedMemory<TwoScans, T>> keys_right(2);
  tokens.scan_keys<Direction::right_to_left>(channel, right.keys, keys_right.keep());
  tokens.scan_grads<Direction::right_to_left>(channel, right.grads, grads_right.keep());
  TwoScans left = states.own(0);
  tokens.scan_keys<Direction::left_to_right>(channel, left.keys, keys_left.keep());
  In* grad_k = row_of<In>(p.grad_k, at.batch, at.begin, 0) + at.channel;
  In* grad_v = row_of<In>(p.grad_v, at.batch, at.begin, 0) + at.channel;
  float grad_bonus = 0.0f, grad_decay = 0.0f;
  tokens.scan_grads<Direction::left_to_right>(
      channel, left.grads, [&](auto together, int i, float P_left, float H_left, float left_reference) {
        if (i >= at.tokens) return;
        const float v = tokens.values[i], dy = tokens.grads[i], h = tokens.log_grads[i];
        // weights are E, relative to the maxima; one by one they are log-weights
        const float key_log = together.value ? tokens.key_maximum : tokens.keys[i];
        const float own_log = together.value ? tokens.log_maximum : tokens.logs[i];
        const float key_weight = together.value ? tokens.keys[i] : 1.0f;
        const float own_weight = together.value ? tokens.logs[i] : 1.0f;
        const float right_reference = grads_right.reference_of(together, i);
        const float by_left = expf(key_log + left_reference), by_right = expf(key_log + right_reference);
        const float own = expf(key_log + own_log + channel.bonus) * own_weight;
        const float P = by_left * P_left + by_right * grads_right.first[i] + own * dy;
        const float H = by_left * H_left + by_right * grads_right.second[i] + own * h;
        grad_v[i * p.grad_v.token] = from_float<In>(key_weight * P);
        grad_k[i * p.grad_k.token] = from_float<In>(key_weight * (v * P + H));
        grad_bonus += key_weight * own * (v * dy + h);
        // pairs that have this token between them
        const float rightwards = expf(keys_left.reference_of(together, i) + right_reference - channel.decay);
        const float leftwards = expf(keys_right.reference_of(together, i) + left_reference - channel.decay);
        grad_decay -=
            rightwards * (keys_left.first[i] * grads_right.first[i] + keys_left.second[i] * grads_right.second[i]) +
            leftwards * (keys_right.first[i] * P_left + keys_right.second[i] * H_left);
      });
  write_shares(p, at, add_warps(grad_decay), add_warps(grad_bonus));
}

constexpr int kSlices = 32;

// 32 channels of one of the two to a block, and so many threads to a channel, each with several loads on their way
__global__ void __launch_bounds__(kWarp* kSlices, 1) column_sums(ColumnSumsParams p) {
  const bool second = blockIdx.x % 2 != 0;
  const int64_t channel = int64_t(blockIdx.x / 2) * kWarp + lane_of();
  const float* from = second ? p.from[1] : p.from[0];
  double sum = 0.0;
  if (channel < p.C) {
#pragma unroll 8
    for (int64_t row = warp_of(); row < p.rows; row += kSlices) sum += double(from[row * p.C + channel]);
  }
  double* slices = reinterpret_cast<double*>(shared_memory());
  slices[threadIdx.x] = sum;
  sync_block();
  if (warp_of() > 0 || channel >= p.C) return;
  for (int slice = 1; slice < kSlices; ++slice) sum += slices[slice * kWarp + lane_of()];
  (second ? p.to[1] : p.to[0])[channel] = float(sum);
}

}  // namespace

int launch_column_sums(const ColumnSumsParams& p, void* stream) {
  return launch(column_sums, 2 * ((p.C + kWarp - 1) / kWarp), kWarp * kSlices, sizeof(double) * kWarp * kSlices, stream,
                p);
}

int launch_wkv_backward(const WkvWork& work, Dtype dtype, void* stream) {
  return with_input(dtype, [&](auto in) {
    using In = decltype(in);
    return launch_scans<Tokens, In>(gradients<In>, 5, work, stream);
  });
}

}  // namespace sola::cuda
