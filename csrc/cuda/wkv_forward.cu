// bidirectional WKV, forward: what each stretch of tokens sums up, what enters it from both sides, its averages

#include "cuda/kernels.h"
#include "cuda/wkv_connect.cuh"

namespace sola::cuda {
namespace {

constexpr int T = kWkvForwardTokens;
static_assert(Scan::kNumbers == kWkvForwardNumbers);

// a lane's tokens: weights of the keys, and values
struct Tokens {
  using State = Scan;
  using Place = WkvPlace<T>;
  static constexpr int kTokens = T;
  float weights[T], values[T], maximum;

  template <class In>
  SOLA_DEVICE void load(const WkvWork& work, const Place& at, const Channel& channel) {
    at.load<In>(work.op.k, weights);
    at.load<In>(work.op.v, values);
    maximum = exponentiate(weights, at.tokens, channel);
  }
  template <Direction direction, class Visit>
  SOLA_DEVICE void scan(const Channel& channel, Scan& scan, const Visit& visit) const {
    scan_tokens<direction>(weights, maximum, values, Ones{}, channel, scan, visit);
  }
  template <Direction direction>
  SOLA_DEVICE Scan sum(const Channel& channel) const {
    return sum_tokens<direction>(weights, maximum, values, Ones{}, channel);
  }
};

template <class In>
__global__ void __launch_bounds__(kWkvThreads, 2) average(WkvWork work) {
  const WkvParams& p = work.op;
  const Tokens::Place at(p, block_from_end());
  const Channel channel = at.channel_of(p);
  Tokens tokens;
  tokens.load<In>(work, at, channel);
  const auto states = enter_tokens(tokens, at, work, channel);
  Scan right = states.own(1);
  KeptSums<Scan, T> sums_right(0);
  tokens.scan<Direction::right_to_left>(channel, right, sums_right.keep());
  In* out = row_of<In>(p.out, at.batch, at.begin, 0) + at.channel;
  float* log_normaliser = p.log_normaliser ? static_cast<float*>(p.log_normaliser) + at.in_plane(work) : nullptr;
  float* exact = p.exact_out ? static_cast<float*>(p.exact_out) + at.in_plane(work) : nullptr;
  Scan left = states.own(0);
  tokens.scan<Direction::left_to_right>(
      channel, left, [&](auto together, int i, float first, float second, float left_reference) {
        // one reference for the three parts; together it is the same for all tokens
        const float right_reference = sums_right.reference_of(together, i);
        const float own = (together.value ? tokens.maximum : tokens.weights[i]) + channel.bonus;
        const float reference = larger(larger(left_reference, right_reference), own);
        const float by_left = expf(left_reference - reference), by_right = expf(right_reference - reference);
        const float weight = expf(own - reference) * (together.value ? tokens.weights[i] : 1.0f);
        const float numerator = by_left * first + by_right * sums_right.first[i] + weight * tokens.values[i];
        const float denominator = by_left * second + by_right * sums_right.second[i] + weight;
        const float result = numerator * fast_reciprocal(denominator);
        if (i >= at.tokens) return;
        out[i * p.out.token] = from_float<In>(result);
        if (log_normaliser) log_normaliser[i * p.C] = reference + logf(denominator);
        if (exact) exact[i * p.C] = result;
      });
}

}  // namespace

int launch_wkv_forward(const WkvWork& work, Dtype dtype, void* stream) {
  return with_input(dtype, [&](auto in) {
    using In = decltype(in);
    return launch_scans<Tokens, In>(average<In>, 1, work, stream);
  });
}

}  // namespace sola::cuda
