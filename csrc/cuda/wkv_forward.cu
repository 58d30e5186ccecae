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
  float weights[T], values[T], maxima[1];  // log-weights until weigh()

  template <class In>
  struct Raw {
    In k[T], v[T];

    SOLA_DEVICE Raw(const WkvWork& work, const Place& at) {
      at.load(work.op.k, k);
      at.load(work.op.v, v);
    }
  };

  template <class In>
  SOLA_DEVICE Tokens(const Raw<In>& raw, const Place& at) {
    at.convert(raw.k, -INFINITY, weights);
    at.convert(raw.v, 0.0f, values);
    maxima[0] = largest(weights);
  }
  SOLA_DEVICE void weigh(const Channel& channel) { exponentiate(weights, maxima[0], channel); }
  template <Direction direction>
  SOLA_DEVICE Scan sum(const Channel& channel) const {
    return sum_tokens<direction>(weights, maxima[0], values, Ones{}, channel);
  }
};

// what is kept for a backward: nothing, the logarithm of the normaliser, or that and the output before it was rounded
enum class Save { nothing, logarithm, output_too };

// where the results of a lane's tokens go, one after the other
template <class In, Save save>
struct Results {
  In* out;
  float *log_normaliser, *exact;
  int64_t out_stride, stride;
  int tokens;

  SOLA_DEVICE Results(const WkvWork& work, const Tokens::Place& at)
      : out(row_of<In>(work.op.out, at.batch, at.begin, 0) + at.channel),
        log_normaliser(static_cast<float*>(work.op.log_normaliser) + at.in_plane(work)),
        exact(static_cast<float*>(work.op.exact_out) + at.in_plane(work)),
        out_stride(work.op.out.token),
        stride(work.op.C),
        tokens(at.tokens) {}

  SOLA_DEVICE void write(int i, float numerator, float denominator, float reference) {
    const float result = numerator * normal_reciprocal(denominator);
    if (i < tokens) *out = from_float<In>(result);
    out += out_stride;
    if constexpr (save != Save::nothing) {
      const float logarithm = reference + logf(denominator);
      if (i < tokens) *log_normaliser = logarithm;
      log_normaliser += stride;
    }
    if constexpr (save == Save::output_too) {
      if (i < tokens) *exact = result;
      exact += stride;
    }
  }
};

template <class In, Save save>
SOLA_DEVICE void average_together(Tokens& tokens, const WarpStates<Scan>& states, const Channel& channel,
                                  Results<In, save> results) {
  const float reference = share_reference(tokens.weights, tokens.maxima[0], states.own(0).m, states.own(1).m);
  const float own = expf(channel.bonus);
  Scan right = entering(states.own(1), reference, channel);
  float first[T], second[T];
  for_tokens<Direction::right_to_left, T>([&](int i) {
    first[i] = right.first;
    second[i] = right.second;
    step(right, channel, tokens.weights[i], tokens.values[i], 1.0f);
  });
  Scan left = entering(states.own(0), reference, channel);
  for_tokens<Direction::left_to_right, T>([&](int i) {
    const float weight = tokens.weights[i];
    results.write(i, fmaf(own, weight * tokens.values[i], left.first + first[i]),
                  fmaf(own, weight, left.second + second[i]), reference);
    step(left, channel, weight, tokens.values[i], 1.0f);
  });
}

template <class In, Save save>
SOLA_DEVICE void average_one_by_one(const Tokens& tokens, const WarpStates<Scan>& states, const Channel& channel,
                                    Results<In, save> results) {
  Scan left = states.own(0), right = states.own(1);
  float first[T], second[T];
  const PerToken<Scan, T> references(0);
  for_tokens<Direction::right_to_left, T>([&](int i) {
    first[i] = right.first;
    second[i] = right.second;
    references[i] = right.m;
    right.add(tokens.weights[i], tokens.values[i], 1.0f, channel.decay);
  });
  for_tokens<Direction::left_to_right, T>([&](int i) {
    const float own = tokens.weights[i] + channel.bonus, reference = larger(larger(left.m, references[i]), own);
    const float by_left = expf(left.m - reference), by_right = expf(references[i] - reference);
    const float weight = expf(own - reference);
    results.write(i, by_left * left.first + by_right * first[i] + weight * tokens.values[i],
                  by_left * left.second + by_right * second[i] + weight, reference);
    left.add(tokens.weights[i], tokens.values[i], 1.0f, channel.decay);
  });
}

template <class In, Save save>
__global__ void __launch_bounds__(kWkvThreads, 2) average(WkvWork work) {
  const Tokens::Place at(work, block_from_end());
  const Tokens::Raw<In> raw(work, at);
  Tokens tokens(raw, at);
  const auto states = enter_tokens(tokens, at, work);
  const Channel channel(states.channel());
  const Results<In, save> results(work, at);
  if (channel.share == Share::none) {
    average_one_by_one(tokens, states, channel, results);
  } else {
    average_together(tokens, states, channel, results);
  }
}

}  // namespace

int launch_wkv_forward(const WkvWork& work, Dtype dtype, void* stream) {
  return with_input(dtype, [&](auto in) {
    using In = decltype(in);
    // a float is not rounded
    constexpr Save all = is_half<In> ? Save::output_too : Save::logarithm;
    const auto kernel = work.op.log_normaliser ? average<In, all> : average<In, Save::nothing>;
    return launch_scans<Tokens, In>(kernel, 1, work, stream);
  });
}

}  // namespace sola::cuda
