// bidirectional WKV: the decaying scan that forward and backward share
//
// A scan sums values under weights e^(x_i − decay·distance), x_i a log-weight per token and channel. A lane has a
// channel and a few tokens, in registers: with M the largest x of these and E_i = e^(x_i − M), the sums among them need
// one exponential per token and multiplications by λ = e^−decay; a state (values, m), standing for values · e^m,
// carries them on. The warps of a block have neighbouring tokens of the same channels, a stretch together.
//
// Nothing that counts is lost as long as |decay|·T + |bonus| ≤ 32 for the T tokens that share a maximum. A token whose
// E underflows (e^−86) is outweighed at every place that it reaches by the token that holds the maximum, by e^54 at
// least; tokens that underflow beside what enters them do so by e^16: m overstates that by what they forget and by what
// keep_in_range leaves (e^32, e^6), and they forget as much once more. Channels of slow decay, nearly all, share one
// over the block: sums of warps then add up as they are. Where the decay is too fast for that a lane's tokens share
// one, and where it or the bonus is too large even there tokens are taken one by one, with the decay in m. So are those
// of a channel whose weights grow (a negative decay) by more than e^40 over the whole sequence: a key that far ones
// outweigh here may be the near one of a query there, and its gradient needs a reference of its own.
#pragma once

#include "cuda/kernel_params.h"
#include "cuda/tile.cuh"

namespace sola::cuda {

constexpr int kWkvThreads = kWkvWarps * kWarp;
static_assert(kWkvChannels == kWarp);

// how far above the reference of some sums others may be that are added to them as they are
constexpr float kNear = 20.0f;
// the log-weight of an empty state: finite, so that differences never turn into Inf − Inf
constexpr float kEmpty = -1e30f;

// e^x, 0 below e^−87; as good as expf for weights of size 1, and one instruction with a product
SOLA_DEVICE float fast_exp(float x) { return fast_exp2(x * kLog2e); }

// The sums of two values over the tokens on one side. `gauge` is a positive number of the size of the summed weights,
// to keep the values in range.
struct Scan {
  static constexpr int kNumbers = 4;
  float first = 0.0f, second = 0.0f, gauge = 0.0f, m = kEmpty;

  SOLA_DEVICE void rescale(float factor) {
    first *= factor;
    second *= factor;
    gauge *= factor;
  }
  // factors that underflow stand for sums that no longer count
  SOLA_DEVICE void refer_to(float reference) {
    rescale(expf(m - reference));
    m = reference;
  }
  // a factor of 1 + x for a tiny x
  SOLA_DEVICE void grow(float x) {
    first = fmaf(first, x, first);
    second = fmaf(second, x, second);
  }
  // in range nothing happens, so nothing is rounded
  SOLA_DEVICE void keep_in_range() {
    if (gauge > 0x1p30f || (gauge < 0x1p-8f && gauge > 0.0f)) {
      m += logf(gauge);
      rescale(1.0f / gauge);
    }
  }
  // one token more, with its log-weight, where tokens can't share a maximum
  SOLA_DEVICE void add(float log_weight, float x, float y, float decay) {
    m -= decay;
    refer_to(larger(m, log_weight));
    const float weight = expf(log_weight - m);
    first = fmaf(weight, x, first);
    second = fmaf(weight, y, second);
    gauge += weight;
  }
  // what lies so far on that `faded` is lost of the logarithm, beside which other sums are
  SOLA_DEVICE void follow(Scan other, float faded) {
    m -= faded;
    const float reference = larger(m, other.m);
    refer_to(reference);
    other.refer_to(reference);
    first += other.first;
    second += other.second;
    gauge += other.gauge;
    keep_in_range();
  }
  // what lies a lane's tokens further on, under the same reference
  SOLA_DEVICE void follow_near(const Scan& other, float fade) {
    first = fmaf(first, fade, other.first);
    second = fmaf(second, fade, other.second);
  }
  SOLA_DEVICE void refer_to(const Scan& other) {
    refer_to(other.m);
    gauge = other.gauge;
  }
  // by so much that sums under the other's reference might leave a float's range
  SOLA_DEVICE bool outweighs(const Scan& other) const { return m > other.m + kNear; }
  SOLA_DEVICE void load(const float* from, int64_t stride) {
    first = from[0];
    second = from[stride];
    gauge = from[2 * stride];
    m = from[3 * stride];
  }
  SOLA_DEVICE void store_sums(float* to, int64_t stride) const {
    to[0] = first;
    to[stride] = second;
  }
  SOLA_DEVICE void store(float* to, int64_t stride) const {
    store_sums(to, stride);
    to[2 * stride] = gauge;
    to[3 * stride] = m;
  }
};

// two scans that are carried together
struct TwoScans {
  static constexpr int kNumbers = 2 * Scan::kNumbers;
  Scan keys, grads;

  SOLA_DEVICE void load(const float* from, int64_t stride) {
    keys.load(from, stride);
    grads.load(from + Scan::kNumbers * stride, stride);
  }
  SOLA_DEVICE void store(float* to, int64_t stride) const {
    keys.store(to, stride);
    grads.store(to + Scan::kNumbers * stride, stride);
  }
  SOLA_DEVICE void store_sums(float* to, int64_t stride) const {
    keys.store_sums(to, stride);
    grads.store_sums(to + Scan::kNumbers * stride, stride);
  }
  SOLA_DEVICE void follow(const TwoScans& other, float faded) {
    keys.follow(other.keys, faded);
    grads.follow(other.grads, faded);
  }
  SOLA_DEVICE void follow_near(const TwoScans& other, float fade) {
    keys.follow_near(other.keys, fade);
    grads.follow_near(other.grads, fade);
  }
  SOLA_DEVICE void refer_to(const TwoScans& other) {
    keys.refer_to(other.keys);
    grads.refer_to(other.grads);
  }
  SOLA_DEVICE bool outweighs(const TwoScans& other) const {
    return keys.outweighs(other.keys) || grads.outweighs(other.grads);
  }
};

// which tokens share a maximum
enum class Share : uint32_t { none, lane, block };

// What the scan needs to know about a channel. `fade`: what is left behind a lane's tokens.
struct Channel {
  static constexpr int kNumbers = 6;
  float decay, bonus, lambda, fade;
  // λ is rounded, and thousands of tokens would raise that to a visible power: −decay − log λ over half of a lane's
  // tokens, once before and once behind them, so that those inside are right on average. What logf errs by is a
  // rounding of the decay, which no distance makes visible: there the weight is less by more.
  float half_drift;
  Share share = Share::none;

  // a lane's tokens, and those of the whole sequence
  SOLA_DEVICE Channel(float rate, float extra, int tokens, int64_t all)
      : decay(rate),
        bonus(extra),
        lambda(expf(-rate)),
        fade(expf(-rate * float(tokens))),
        half_drift(0.5f * float(tokens) * (-rate - logf(lambda))) {
    const float room = 32.0f - fabsf(extra), change = fabsf(rate) * float(tokens);
    // none of this is so for NaN
    if (!(rate * float(all) >= -40.0f)) return;
    if (room >= change) share = Share::lane;
    if (room >= change * kWkvWarps) share = Share::block;
  }
  SOLA_DEVICE explicit Channel(const float* from)
      : decay(from[0]),
        bonus(from[kWarp]),
        lambda(from[2 * kWarp]),
        fade(from[3 * kWarp]),
        half_drift(from[4 * kWarp]),
        share(static_cast<Share>(float_to_bits(from[5 * kWarp]))) {}
  SOLA_DEVICE void store(float* to) const {
    to[0] = decay;
    to[kWarp] = bonus;
    to[2 * kWarp] = lambda;
    to[3 * kWarp] = fade;
    to[4 * kWarp] = half_drift;
    to[5 * kWarp] = bits_to_float(uint32_t(share));
  }
};

enum class Direction { left_to_right, right_to_left };

// f(p) for every token of a lane, in the order of a direction
template <Direction direction, int T, class F>
SOLA_DEVICE void for_tokens(const F& f) {
#pragma unroll
  for (int step = 0; step < T; ++step) f(direction == Direction::left_to_right ? step : T - 1 - step);
}

// second values of a scan that counts weights
struct Ones {
  SOLA_DEVICE float operator[](int) const { return 1.0f; }
};

template <int T>
SOLA_DEVICE float largest(const float (&x)[T]) {
  float best = kEmpty;
#pragma unroll
  for (int p = 0; p < T; ++p) best = larger(best, x[p]);
  return best;
}

// Log-weights of a lane's tokens to E = e^(x − M). One by one they stay as they are.
template <int T>
SOLA_DEVICE void exponentiate(float (&x)[T], float maximum, const Channel& channel) {
  if (channel.share == Share::none) return;
#pragma unroll
  for (int p = 0; p < T; ++p) x[p] = fast_exp(x[p] - maximum);
}

// Moves sums by one token, of weight E.
SOLA_DEVICE void step(Scan& scan, const Channel& channel, float weight, float x, float y) {
  scan.first = fmaf(channel.lambda, scan.first, weight * x);
  scan.second = fmaf(channel.lambda, scan.second, weight * y);
}

// a state as it enters a lane's tokens
SOLA_DEVICE Scan entering(Scan scan, float reference, const Channel& channel) {
  // mostly it is the block's
  if (scan.m != reference) scan.refer_to(reference);
  scan.grow(channel.half_drift);
  return scan;
}
SOLA_DEVICE TwoScans entering(const TwoScans& scans, float keys, float grads, const Channel& channel) {
  return {entering(scans.keys, keys, channel), entering(scans.grads, grads, channel)};
}

// what a lane's tokens sum up by themselves
template <Direction direction, int T, class First, class Second>
SOLA_DEVICE Scan sum_tokens(const float (&weights)[T], float maximum, const First& first, const Second& second,
                            const Channel& channel) {
  Scan scan;
  if (channel.share == Share::none) {
    for_tokens<direction, T>([&](int p) { scan.add(weights[p], first[p], second[p], channel.decay); });
  } else {
    for_tokens<direction, T>([&](int p) { step(scan, channel, weights[p], first[p], second[p]); });
    scan.grow(channel.half_drift);
    scan.gauge = 1.0f;
    scan.m = maximum;
  }
  return scan;
}

// One reference for a lane's weights and what enters it from both sides with references of its own, the largest of them
// or not far below it, so that parts can be added as they are: mostly that of the weights.
template <int T>
SOLA_DEVICE float share_reference(float (&weights)[T], float maximum, float left, float right) {
  const float outside = larger(left, right);
  if (!(outside > maximum + kNear)) return maximum;
  const float factor = fast_exp(maximum - outside);
#pragma unroll
  for (int p = 0; p < T; ++p) weights[p] *= factor;
  return outside;
}

}  // namespace sola::cuda
