// w ⊙ (x − mean) / √(variance + ε) + b over the channels of every token, and its gradients
//
// Some lanes of a warp share a token, which stays in their registers: memory is read once and written once, and sums go
// from lane to lane. A narrow token has few lanes with several vectors of 16 bytes each, so that none is idle.

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/numbers.cuh"

namespace sola::cuda {
namespace {

// backward in smaller blocks: sums of parameters take so many registers that larger ones would leave some unused
constexpr int kNormThreads = 256, kGradientThreads = 128;
// numbers between sums of threads in shared memory; neighbouring channels lie in different banks
template <class In>
constexpr int kSumsStride = kGradientThreads + kWarp / kVector<In>;

// over the lanes that share a token
SOLA_DEVICE float sum_of(float x, int lanes) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) x += shuffle_xor(x, distance);
  return x;
}

// a lane's part of a token: vectors lane, lane + lanes, ... as far as there are any
template <class In, int vectors>
struct Part {
  static constexpr int width = kVector<In>;
  float number[vectors][width];
};

// what a thread does its share of
struct Share {
  int lanes, lane;
  int64_t channels;

  SOLA_DEVICE explicit Share(const LayerNormWork& work)
      : lanes(work.lanes), lane(int(threadIdx.x) % work.lanes), channels(work.op.C) {}

  // f(vector, its first channel) for those that exist
  template <class In, int vectors, class F>
  SOLA_DEVICE void for_vectors(const F& f) const {
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      const int64_t channel = (int64_t(v) * lanes + lane) * kVector<In>;
      if (channel < channels) f(v, channel);
    }
  }
  template <class In, int vectors>
  SOLA_DEVICE void load(const Rows& rows, int64_t token, Part<In, vectors>& to) const {
    const In* from = static_cast<const In*>(rows.data) + token * rows.stride;
    for_vectors<In, vectors>([&](int v, int64_t channel) { unpack<In>(load_vec4(from + channel), to.number[v]); });
  }
  template <class In, int vectors>
  SOLA_DEVICE void store(const Part<In, vectors>& from, const Rows& rows, int64_t token) const {
    In* to = static_cast<In*>(rows.data) + token * rows.stride;
    for_vectors<In, vectors>([&](int v, int64_t channel) { write_vector(from.number[v], to + channel); });
  }
};

// numbers of a parameter, in the type of the tokens or in float
template <class In>
SOLA_DEVICE void load_parameter(const void* from, bool wide, int64_t channel, float (&to)[kVector<In>]) {
  if (!wide) {
    unpack<In>(load_vec4(static_cast<const In*>(from) + channel), to);
    return;
  }
#pragma unroll
  for (int i = 0; i < kVector<In>; i += 4) {
    float four[4];
    unpack<float>(load_vec4(static_cast<const float*>(from) + channel + i), four);
#pragma unroll
    for (int j = 0; j < 4; ++j) to[i + j] = four[j];
  }
}

// x ← (x − mean) r; returns r = 1 / √(variance + ε)
template <class In, int vectors>
SOLA_DEVICE float normalise(const Share& share, float eps, Part<In, vectors>& x) {
  float sum = 0.0f, squares = 0.0f;
  share.for_vectors<In, vectors>([&](int v, int64_t) {
#pragma unroll
    for (float number : x.number[v]) sum += number;
  });
  const float mean = sum_of(sum, share.lanes) / float(share.channels);
  share.for_vectors<In, vectors>([&](int v, int64_t) {
#pragma unroll
    for (float& number : x.number[v]) {
      number -= mean;
      squares = fmaf(number, number, squares);
    }
  });
  const float inverse = 1.0f / sqrtf(sum_of(squares, share.lanes) / float(share.channels) + eps);
  share.for_vectors<In, vectors>([&](int v, int64_t) {
#pragma unroll
    for (float& number : x.number[v]) number *= inverse;
  });
  return inverse;
}

template <class In, int vectors>
__global__ void __launch_bounds__(kNormThreads) layer_norm(LayerNormWork work) {
  const LayerNormParams& p = work.op;
  const Share share(work);
  const int tokens = kNormThreads / share.lanes;
  const int64_t token = int64_t(blockIdx.x) * tokens + int(threadIdx.x) / share.lanes;
  // all lanes of a warp add up together
  const bool exists = token < p.N;
  Part<In, vectors> x{};
  if (exists) share.load(p.x, token, x);
  normalise(share, float(p.eps), x);
  if (!exists) return;
  share.for_vectors<In, vectors>([&](int v, int64_t channel) {
    float weight[kVector<In>], bias[kVector<In>];
    load_parameter<In>(p.weight, p.wide, channel, weight);
    load_parameter<In>(p.bias, p.wide, channel, bias);
#pragma unroll
    for (int i = 0; i < kVector<In>; ++i) x.number[v][i] = fmaf(x.number[v][i], weight[i], bias[i]);
  });
  share.store(x, p.out, token);
}

// what all threads of a block have of two sums over tokens, added up in order: (2, channels)
template <class In, int vectors>
SOLA_DEVICE void leave_sums(const Share& share, const Part<In, vectors>& grad_weight,
                            const Part<In, vectors>& grad_bias, float* to) {
  constexpr int width = kVector<In>;
  const int C = int(share.channels), tokens = kGradientThreads / share.lanes;
  float* sums = reinterpret_cast<float*>(shared_memory());
#pragma unroll
  for (int v = 0; v < vectors; ++v) {
#pragma unroll
    for (int i = 0; i < width; ++i) {
      sums[(v * width + i) * kSumsStride<In> + threadIdx.x] = grad_weight.number[v][i];
      sums[((vectors + v) * width + i) * kSumsStride<In> + threadIdx.x] = grad_bias.number[v][i];
    }
  }
  sync_block();
  for (int i = threadIdx.x; i < 2 * C; i += kGradientThreads) {
    const int which = i >= C, channel = int(i - which * C), vector = channel / width;
    const int number = (which * vectors + vector / share.lanes) * width + channel % width;
    const float* parts = sums + number * kSumsStride<In> + vector % share.lanes;
    float total = 0.0f;
    for (int t = 0; t < tokens; ++t) total += parts[t * share.lanes];
    to[i] = total;
  }
}

// With x̂ = (x − mean) r and g = w ⊙ dout: dx = r (g − Σg/C − x̂ Σ(g ⊙ x̂)/C). A block has a range of tokens, and leaves
// its share of dw = Σ dout ⊙ x̂ and db = Σ dout, of which every thread sums up its vectors.
template <class In, int vectors>
__global__ void __launch_bounds__(kGradientThreads) layer_norm_gradients(LayerNormWork work) {
  constexpr int width = kVector<In>;
  const LayerNormParams& p = work.op;
  const Share share(work);
  const int tokens = kGradientThreads / share.lanes, mine = int(threadIdx.x) / share.lanes;
  const int64_t begin = int64_t(blockIdx.x) * kNormRange, end = min(begin + kNormRange, p.N);
  Part<In, vectors> grad_weight{}, grad_bias{};
  for (int64_t first = begin; first < end; first += tokens) {
    const int64_t token = first + mine;
    const bool exists = token < end;
    Part<In, vectors> x{}, grad{};
    if (exists) {
      share.load(p.x, token, x);
      share.load(p.grad_out, token, grad);
    }
    const float inverse = normalise(share, float(p.eps), x);
    float sum = 0.0f, product = 0.0f;
    share.for_vectors<In, vectors>([&](int v, int64_t channel) {
      float weight[width];
      load_parameter<In>(p.weight, p.wide, channel, weight);
#pragma unroll
      for (int i = 0; i < width; ++i) {
        // of a token that doesn't exist x̂ may be NaN
        if (exists) grad_weight.number[v][i] = fmaf(grad.number[v][i], x.number[v][i], grad_weight.number[v][i]);
        grad_bias.number[v][i] += grad.number[v][i];
        grad.number[v][i] *= weight[i];
        sum += grad.number[v][i];
        product = fmaf(grad.number[v][i], x.number[v][i], product);
      }
    });
    const float from_mean = sum_of(sum, share.lanes) / float(p.C),
                from_norm = sum_of(product, share.lanes) / float(p.C);
    if (!exists) continue;
    share.for_vectors<In, vectors>([&](int v, int64_t) {
#pragma unroll
      for (int i = 0; i < width; ++i) {
        grad.number[v][i] = inverse * (grad.number[v][i] - from_mean - x.number[v][i] * from_norm);
      }
    });
    share.store(grad, p.grad_x, token);
  }
  leave_sums(share, grad_weight, grad_bias, static_cast<float*>(p.sums) + int64_t(blockIdx.x) * 2 * p.C);
}

// Calls f(In{}, integral_constant) with the vectors of a thread, and says how many lanes share a token: as many vectors
// as leave the fewest places empty, and of those the most, whose loads are on their way together.
template <int most, class F>
int with_vectors(LayerNormWork& work, Dtype dtype, const F& f) {
  return with_input(dtype, [&](auto in) {
    const int64_t all = work.op.C / kVector<decltype(in)>;
    int64_t best = 0, fewest = int64_t(1) << 62;
    for (int64_t vectors : {4, 3, 2, 1, 8}) {
      int64_t lanes = 1;
      while (lanes * vectors < all) lanes *= 2;
      if (vectors <= most && lanes <= kWarp && lanes * vectors - all < fewest) {
        fewest = lanes * vectors - all;
        best = vectors;
        work.lanes = int(lanes);
      }
    }
    switch (best) {
      case 1:
        return f(in, std::integral_constant<int, 1>{});
      case 2:
        return f(in, std::integral_constant<int, 2>{});
      case 3:
        return f(in, std::integral_constant<int, 3>{});
      case 4:
        return f(in, std::integral_constant<int, 4>{});
      default:
        return f(in, std::integral_constant<int, most>{});
    }
  });
}

}  // namespace

int launch_layer_norm(const LayerNormParams& p, Dtype dtype, void* stream) {
  LayerNormWork work{p};
  return with_vectors<kNormVectors>(work, dtype, [&](auto in, auto vectors) {
    const int64_t tokens = kNormThreads / work.lanes;
    return launch(layer_norm<decltype(in), vectors>, (p.N + tokens - 1) / tokens, kNormThreads, 0, stream, work);
  });
}

int launch_layer_norm_backward(const LayerNormParams& p, Dtype dtype, void* stream) {
  LayerNormWork work{p};
  return with_vectors<kNormGradientVectors>(work, dtype, [&](auto in, auto vectors) {
    using In = decltype(in);
    const size_t shared = sizeof(float) * 2 * vectors * kVector<In> * kSumsStride<In>;
    return launch(layer_norm_gradients<In, vectors>, (p.N + kNormRange - 1) / kNormRange, kGradientThreads, shared,
                  stream, work);
  });
}

}  // namespace sola::cuda
