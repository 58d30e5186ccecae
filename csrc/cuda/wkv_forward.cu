// bidirectional WKV, forward: what each stretch of tokens sums up, what enters it from both sides, its averages

#include "cuda/kernels.h"
#include "cuda/wkv_connect.cuh"

namespace sola::cuda {
namespace {

constexpr int T = kWkvForwardTokens;
constexpr Direction kFromLeft = Direction::left_to_right, kFromRight = Direction::right_to_left;
using Place = WkvPlace<T>;
using States = WarpStates<Scan>;
static_assert(Scan::kNumbers == kWkvForwardNumbers);

// a lane's tokens: weights of the keys, and values
struct Tokens {
  float weights[T], values[T], maximum;

  template <class In>
  SOLA_DEVICE void load(const WkvParams& p, const Place& at, const Channel& channel) {
    at.load<In>(p.k, weights);
    at.load<In>(p.v, values);
    maximum = exponentiate(weights, at.tokens, channel);
  }
  template <Direction direction>
  SOLA_DEVICE Scan sum(const Channel& channel) const {
    return sum_tokens<direction>(weights, maximum, values, Ones{}, channel);
  }
};

template <class In>
__global__ void __launch_bounds__(kWkvThreads, 2) gather(WkvWork work) {
  const Place at(work.op);
  const Channel channel = at.channel_of(work.op);
  Tokens tokens;
  tokens.load<In>(work.op, at, channel);
  const States states;
  states.share(tokens.sum<kFromLeft>(channel), tokens.sum<kFromRight>(channel));
  states.leave(at, work, channel.decay);
}

template <class In>
__global__ void __launch_bounds__(kWkvThreads, 2) average(WkvWork work) {
  const WkvParams& p = work.op;
  const Place at(p);
  const Channel channel = at.channel_of(p);
  Tokens tokens;
  tokens.load<In>(p, at, channel);
  const States states;
  states.share(tokens.sum<kFromLeft>(channel), tokens.sum<kFromRight>(channel));
  states.enter(at, work, channel.decay);
  Scan left, right;
  left.load(states.at(0, warp_of()), kWarp);
  right.load(states.at(1, warp_of()), kWarp);

  float firsts[T], seconds[T], right_reference = 0.0f;
  const References<Scan, T> references(0);
  scan_tokens<kFromRight>(tokens.weights, tokens.maximum, tokens.values, Ones{}, channel, right,
                          [&](auto together, int i, float first, float second, float reference) {
                            firsts[i] = first;
                            seconds[i] = second;
                            if constexpr (together.value) {
                              right_reference = reference;
                            } else {
                              references[i] = reference;
                            }
                          });
  In* out = row_of<In>(p.out, at.batch, at.begin, 0) + at.channel;
  float* log_normaliser = p.log_normaliser ? static_cast<float*>(p.log_normaliser) + at.in_plane(work) : nullptr;
  float* exact = p.exact_out ? static_cast<float*>(p.exact_out) + at.in_plane(work) : nullptr;
  scan_tokens<kFromLeft>(tokens.weights, tokens.maximum, tokens.values, Ones{}, channel, left,
                         [&](auto together, int i, float first, float second, float left_reference) {
                           // one reference for the three parts; together it is the same for all tokens
                           if constexpr (!together.value) right_reference = references[i];
                           const float own = (together.value ? tokens.maximum : tokens.weights[i]) + channel.bonus;
                           const float reference = larger(larger(left_reference, right_reference), own);
                           const float by_left = expf(left_reference - reference),
                                       by_right = expf(right_reference - reference);
                           const float weight = expf(own - reference) * (together.value ? tokens.weights[i] : 1.0f);
                           const float numerator = by_left * first + by_right * firsts[i] + weight * tokens.values[i];
                           const float denominator = by_left * second + by_right * seconds[i] + weight;
                           const float result = numerator * fast_reciprocal(denominator);
                           if (i >= at.tokens) return;
                           out[i * p.out.token] = from_float<In>(result);
                           if (log_normaliser) log_normaliser[i * work.row] = reference + logf(denominator);
                           if (exact) exact[i * work.row] = result;
                         });
}

constexpr size_t kBytes = States::kBytes + sizeof(float) * T * kWkvThreads;

}  // namespace

int launch_wkv_forward(const WkvWork& work, Dtype dtype, void* stream) {
  const int64_t blocks = work.op.B * work.op.stretches * ((work.op.C + kWarp - 1) / kWarp);
  return with_input(dtype, [&](auto in) {
    using In = decltype(in);
    int error = cudaSuccess;
    if (work.op.stretches > 1) {
      error = launch(gather<In>, blocks, kWkvThreads, States::kBytes, stream, work);
      if (error == cudaSuccess) error = launch_connect<Scan, Place::kStretch>(work, stream);
    }
    return error ? error : launch(average<In>, blocks, kWkvThreads, kBytes, stream, work);
  });
}

}  // namespace sola::cuda
