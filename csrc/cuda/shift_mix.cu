// tokens mixed with their neighbours on the grid: m ⊙ x + (1 − m) ⊙ s for several m at once, and the gradients
//
// s has the channels of group 0 from the token at the left, of 1 from the right, of 2 from above, of 3 from below,
// zeros beyond the edge, and what is left over from the token itself. A thread has a vector of channels, all of one
// group.

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/tile.cuh"

namespace sola::cuda {
namespace {

constexpr int kMixThreads = 256;
constexpr int kGroups = 5;

// a token of an image, and how its groups are found from it: way 1 where they come from, −1 who takes them
struct Pixel {
  int64_t batch, row, column;

  SOLA_DEVICE Pixel(const ShiftMixWork& work, int64_t batch, int64_t token)
      : batch(batch), row(quotient(token, work.columns)), column(token - row * work.op.W) {}

  template <class T>
  SOLA_DEVICE T* in(const View& view) const {
    return row_of<T>(view, batch, row, column);
  }
  SOLA_DEVICE Pixel neighbour(int group, int way) const {
    Pixel other = *this;
    if (group < 2) other.column += group == 0 ? -way : way;
    if (group == 2 || group == 3) other.row += group == 2 ? -way : way;
    return other;
  }
  SOLA_DEVICE bool exists(const ShiftMixParams& p) const {
    return row >= 0 && row < p.H && column >= 0 && column < p.W;
  }
};

// `width` neighbouring numbers: 16 bytes of In, or one
template <class In, int width>
SOLA_DEVICE void read(const In* from, float (&to)[width]) {
  if constexpr (width == 1) {
    to[0] = to_float(*from);
  } else {
    unpack<In>(load_vec4(from), to);
  }
}
template <int width>
SOLA_DEVICE void read_ratios(const float* from, float (&to)[width]) {
  if constexpr (width == 1) {
    to[0] = *from;
  } else {
#pragma unroll
    for (int i = 0; i < width; i += 4) {
      float four[4];
      read<float, 4>(from + i, four);
#pragma unroll
      for (int j = 0; j < 4; ++j) to[i + j] = four[j];
    }
  }
}
template <class In, int width>
SOLA_DEVICE void write(const float (&from)[width], In* to) {
  if constexpr (width == 1) {
    *to = from_float<In>(from[0]);
  } else {
    write_vector(from, to);
  }
}
// the same of a token that may not exist
template <class In, int width>
SOLA_DEVICE void read_neighbour(const ShiftMixParams& p, const View& view, const Pixel& at, int64_t channel,
                                float (&to)[width]) {
  if (at.exists(p)) {
    read(at.in<const In>(view) + channel, to);
  } else {
#pragma unroll
    for (int i = 0; i < width; ++i) to[i] = 0.0f;
  }
}

SOLA_DEVICE int group_of(const ShiftMixWork& work, int64_t channel) {
  return channel < 4 * work.group.by ? int(quotient(channel, work.group)) : kGroups - 1;
}

template <class In, int width>
__global__ void __launch_bounds__(kMixThreads, 4) mix(ShiftMixWork work) {
  const ShiftMixParams& p = work.op;
  const int64_t index = int64_t(blockIdx.x) * kMixThreads + threadIdx.x;
  const int64_t token = quotient(index, work.channel_vectors), batch = quotient(token, work.tokens);
  const int64_t channel = (index - token * work.channel_vectors.by) * width;
  if (batch >= p.B) return;
  const Pixel at(work, batch, token - batch * work.tokens.by);
  float own[width], other[width];
  read(at.in<const In>(p.x) + channel, own);
  read_neighbour<In>(p, p.x, at.neighbour(group_of(work, channel), 1), channel, other);
  for (int i = 0; i < p.mixes; ++i) {
    float ratio[width], mixed[width];
    read_ratios(static_cast<const float*>(p.ratios) + i * p.C + channel, ratio);
#pragma unroll
    for (int j = 0; j < width; ++j) mixed[j] = fmaf(ratio[j], own[j], (1.0f - ratio[j]) * other[j]);
    write(mixed, at.in<In>(p.mixed[i]) + channel);
  }
}

// Gradients of a range of tokens and of up to kWarp vectors of channels: threads have a vector each and every lanes-th
// token. Their shares of the ratios' gradients lie in shared memory, (mixes, width, threads), and are added up in
// order.
template <class In, int width>
__global__ void __launch_bounds__(kMixThreads, 2) mix_gradients(ShiftMixWork work) {
  const ShiftMixParams& p = work.op;
  const int64_t blocks = (p.C / width + work.vectors - 1) / work.vectors, share = blockIdx.x / blocks;
  const int vector = int(threadIdx.x) % work.vectors, lane = int(threadIdx.x) / work.vectors;
  const int lanes = kMixThreads / work.vectors;
  const int64_t first = blockIdx.x % blocks * work.vectors, channel = (first + vector) * width;
  float* sums = reinterpret_cast<float*>(shared_memory());
  for (int i = threadIdx.x; i < p.mixes * width * kMixThreads; i += kMixThreads) sums[i] = 0.0f;
  sync_block();

  const int64_t begin = share % work.ranges * kMixRange, end = min(begin + kMixRange, p.H * p.W);
  const int group = group_of(work, channel);
  for (int64_t token = begin + lane; channel < p.C && token < end; token += lanes) {
    const Pixel at(work, share / work.ranges, token), taker = at.neighbour(group, -1);
    float distance[width], other[width], sum[width] = {};
    read(at.in<const In>(p.x) + channel, distance);
    read_neighbour<In>(p, p.x, at.neighbour(group, 1), channel, other);
#pragma unroll
    for (int j = 0; j < width; ++j) distance[j] -= other[j];
    for (int i = 0; i < p.mixes; ++i) {
      float ratio[width], grad[width], taken[width];
      read_ratios(static_cast<const float*>(p.ratios) + i * p.C + channel, ratio);
      read(at.in<const In>(p.mixed[i]) + channel, grad);
      read_neighbour<In>(p, p.mixed[i], taker, channel, taken);
#pragma unroll
      for (int j = 0; j < width; ++j) {
        sum[j] = fmaf(ratio[j], grad[j], fmaf(1.0f - ratio[j], taken[j], sum[j]));
        float& total = sums[(i * width + j) * kMixThreads + threadIdx.x];
        total = fmaf(grad[j], distance[j], total);
      }
    }
    write(sum, at.in<In>(p.grad_x) + channel);
  }
  sync_block();

  float* shares = static_cast<float*>(p.grad_ratios) + share * p.mixes * p.C;
  for (int i = threadIdx.x; i < p.mixes * width * work.vectors; i += kMixThreads) {
    const int number = i / work.vectors, mine = i % work.vectors;
    const int64_t place = (first + mine) * width + number % width;
    float total = 0.0f;
    for (int l = 0; l < lanes; ++l) total += sums[number * kMixThreads + l * work.vectors + mine];
    if (place < p.C) shares[number / width * p.C + place] = total;
  }
}

// calls f(In{}, integral_constant) with the width of vectors
template <class F>
int with_vectors(const ShiftMixWork& work, Dtype dtype, const F& f) {
  return with_input(dtype, [&](auto in) {
    using In = decltype(in);
    return work.wide ? f(in, std::integral_constant<int, kVector<In>>{}) : f(in, std::integral_constant<int, 1>{});
  });
}

}  // namespace

int launch_shift_mix(ShiftMixWork work, Dtype dtype, void* stream) {
  return with_vectors(work, dtype, [&](auto in, auto width) {
    const ShiftMixParams& p = work.op;
    work.channel_vectors = Divisor(p.C / width);
    const int64_t threads = p.B * p.H * p.W * (p.C / width);
    return launch(mix<decltype(in), width>, (threads + kMixThreads - 1) / kMixThreads, kMixThreads, 0, stream, work);
  });
}

int launch_shift_mix_backward(ShiftMixWork work, Dtype dtype, void* stream) {
  return with_vectors(work, dtype, [&](auto in, auto width) {
    const ShiftMixParams& p = work.op;
    const int64_t vectors = p.C / width;
    while (work.vectors < kWarp && work.vectors < vectors) work.vectors *= 2;
    const int64_t blocks = p.B * work.ranges * ((vectors + work.vectors - 1) / work.vectors);
    const size_t shared = sizeof(float) * p.mixes * width * kMixThreads;
    return launch(mix_gradients<decltype(in), width>, blocks, kMixThreads, shared, stream, work);
  });
}

}  // namespace sola::cuda
