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
  // keys and logs: log-weights until weigh()
  float keys[T], values[T], logs[T], grads[T], log_grads[T], maxima[2];

  template <class In>
  struct Raw {
    In k[T], v[T], grad_out[T];
    float log_normaliser[T], out[T];  // before the output was rounded

    SOLA_DEVICE Raw(const WkvWork& work, const Place& at) {
      const WkvParams& p = work.op;
      at.load(p.k, k);
      at.load(p.v, v);
      at.load(p.grad_out, grad_out);
      at.load(static_cast<const float*>(p.log_normaliser) + at.in_plane(work), p.C, log_normaliser);
      if constexpr (is_half<In>) {
        at.load(static_cast<const float*>(p.exact_out) + at.in_plane(work), p.C, out);
      } else {
        at.load(p.out, out);
      }
    }
  };

  template <class In>
  SOLA_DEVICE Tokens(const Raw<In>& raw, const Place& at) {
    at.convert(raw.k, -INFINITY, keys);
    at.convert(raw.v, 0.0f, values);
    at.convert(raw.grad_out, 0.0f, grads);
    at.convert(raw.log_normaliser, INFINITY, logs);
    at.convert(raw.out, 0.0f, log_grads);
#pragma unroll
    for (int i = 0; i < T; ++i) {
      logs[i] = -logs[i];
      log_grads[i] *= -grads[i];
    }
    maxima[0] = largest(keys);
    maxima[1] = largest(logs);
  }
  SOLA_DEVICE void weigh(const Channel& channel) {
    exponentiate(keys, maxima[0], channel);
    exponentiate(logs, maxima[1], channel);
  }
  template <Direction direction>
  SOLA_DEVICE TwoScans sum(const Channel& channel) const {
    return {sum_tokens<direction>(keys, maxima[0], values, Ones{}, channel),
            sum_tokens<direction>(logs, maxima[1], grads, log_grads, channel)};
  }
};

// sums on the right of every token
struct RightSums {
  float N[T], D[T], P[T], H[T];

  SOLA_DEVICE void keep(int i, const TwoScans& right) {
    N[i] = right.keys.first;
    D[i] = right.keys.second;
    P[i] = right.grads.first;
    H[i] = right.grads.second;
  }
};

// where the gradients of a lane's tokens go, one after the other, and its sums of those of the parameters
template <class In>
struct Gradients {
  const WkvParams& p;
  In *k, *v;
  int tokens;
  float bonus = 0.0f, decay = 0.0f;

  SOLA_DEVICE Gradients(const WkvParams& params, const Tokens::Place& at)
      : p(params),
        k(row_of<In>(p.grad_k, at.batch, at.begin, 0) + at.channel),
        v(row_of<In>(p.grad_v, at.batch, at.begin, 0) + at.channel),
        tokens(at.tokens) {}

  SOLA_DEVICE void write(int i, float grad_k, float grad_v) {
    if (i < tokens) *k = from_float<In>(grad_k);
    if (i < tokens) *v = from_float<In>(grad_v);
    k += p.grad_k.token;
    v += p.grad_v.token;
  }
};

template <class In>
SOLA_DEVICE void differentiate_together(Tokens& tokens, const WarpStates<TwoScans>& states, const Channel& channel,
                                        Gradients<In>& to) {
  const float keys = share_reference(tokens.keys, tokens.maxima[0], states.own(0).keys.m, states.own(1).keys.m);
  const float grads = share_reference(tokens.logs, tokens.maxima[1], states.own(0).grads.m, states.own(1).grads.m);
  RightSums sums;
  TwoScans right = entering(states.own(1), keys, grads, channel);
  for_tokens<Direction::right_to_left, T>([&](int i) {
    sums.keep(i, right);
    step(right.keys, channel, tokens.keys[i], tokens.values[i], 1.0f);
    step(right.grads, channel, tokens.logs[i], tokens.grads[i], tokens.log_grads[i]);
  });
  TwoScans left = entering(states.own(0), keys, grads, channel);
  const float unit = expf(keys + grads), own = expf(channel.bonus);
  for_tokens<Direction::left_to_right, T>([&](int i) {
    const float v = tokens.values[i], dy = tokens.grads[i], h = tokens.log_grads[i];
    const float key = unit * tokens.keys[i], weight = own * tokens.logs[i];
    const float P = fmaf(weight, dy, left.grads.first + sums.P[i]);
    const float H = fmaf(weight, h, left.grads.second + sums.H[i]);
    to.write(i, key * fmaf(v, P, H), key * P);
    to.bonus = fmaf(key * weight, fmaf(v, dy, h), to.bonus);
    // pairs that have this token between them
    to.decay -= left.keys.first * sums.P[i] + left.keys.second * sums.H[i] + sums.N[i] * left.grads.first +
                sums.D[i] * left.grads.second;
    step(left.keys, channel, tokens.keys[i], v, 1.0f);
    step(left.grads, channel, tokens.logs[i], dy, h);
  });
  to.decay *= unit * channel.lambda;
}

template <class In>
SOLA_DEVICE void differentiate_one_by_one(const Tokens& tokens, const WarpStates<TwoScans>& states,
                                          const Channel& channel, Gradients<In>& to) {
  TwoScans left = states.own(0), right = states.own(1);
  RightSums sums;
  const PerToken<TwoScans, T> key_references(0), grad_references(1);
  const auto add = [&](TwoScans& scans, int i) {
    scans.keys.add(tokens.keys[i], tokens.values[i], 1.0f, channel.decay);
    scans.grads.add(tokens.logs[i], tokens.grads[i], tokens.log_grads[i], channel.decay);
  };
  for_tokens<Direction::right_to_left, T>([&](int i) {
    sums.keep(i, right);
    key_references[i] = right.keys.m;
    grad_references[i] = right.grads.m;
    add(right, i);
  });
  for_tokens<Direction::left_to_right, T>([&](int i) {
    // tokens one after the other, which takes fewer registers
    begin_basic_block(to.tokens < 0);
    const float v = tokens.values[i], dy = tokens.grads[i], h = tokens.log_grads[i], key = tokens.keys[i];
    const float by_left = expf(key + left.grads.m), by_right = expf(key + grad_references[i]);
    const float own = expf(key + tokens.logs[i] + channel.bonus);
    const float P = by_left * left.grads.first + by_right * sums.P[i] + own * dy;
    const float H = by_left * left.grads.second + by_right * sums.H[i] + own * h;
    to.write(i, v * P + H, P);
    to.bonus += own * (v * dy + h);
    const float rightwards = expf(left.keys.m + grad_references[i] - channel.decay);
    const float leftwards = expf(key_references[i] + left.grads.m - channel.decay);
    to.decay -= rightwards * (left.keys.first * sums.P[i] + left.keys.second * sums.H[i]) +
                leftwards * (sums.N[i] * left.grads.first + sums.D[i] * left.grads.second);
    add(left, i);
  });
}

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
  let_next_start();
  const WkvParams& p = work.op;
  const Tokens::Place at(work, block_from_end());
  const Tokens::Raw<In> raw(work, at);
  Tokens tokens(raw, at);
  const auto states = enter_tokens(tokens, at, work);
  const Channel channel(states.channel());
  Gradients<In> to(p, at);
  if (channel.share == Share::none) {
    differentiate_one_by_one(tokens, states, channel, to);
  } else {
    differentiate_together(tokens, states, channel, to);
  }
  write_shares(p, at, add_warps(to.decay), add_warps(to.bonus));
}

}  // namespace

int launch_wkv_backward(const WkvWork& work, Dtype dtype, void* stream) {
  return with_input(dtype, [&](auto in) {
    using In = decltype(in);
    return launch_scans<Tokens, In>(gradients<In>, 2, work, stream);
  });
}

}  // namespace sola::cuda
