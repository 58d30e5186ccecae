// channel mix where PyTorch multiplies: what comes between its products, in one reading and writing of each tensor

#include "cuda/channel_mix.cuh"
#include "cuda/kernels.h"

namespace sola::cuda {
namespace {

// numbers that a thread takes at once, and how often
constexpr int kWide = 8, kTimes = 2, kBlock = 256, kOfBlock = kWide * kTimes * kBlock;

template <MixStep step>
SOLA_DEVICE void change(float& a, float& b, float c, float d) {
  if constexpr (step == MixStep::square) a = square(relu(a));
  if constexpr (step == MixStep::gate) a = sigmoid(a) * c;
  if constexpr (step == MixStep::through_squares) {
    const float positive = relu(a);
    a = square(positive);
    // a gradient that has left the range of 16 bits ends at a unit that is off
    b = positive == 0.0f ? 0.0f : 2.0f * positive * b;
  }
  if constexpr (step == MixStep::through_gate) {
    const float share = sigmoid(a);
    a = share * c;
    b = (1.0f - share) * c * d;
  }
}

template <class In, MixStep step>
__global__ void __launch_bounds__(kBlock) mix_step(MixStepParams p) {
  constexpr bool reads_b = step == MixStep::through_squares, writes_b = reads_b || step == MixStep::through_gate;
  constexpr bool reads_c = step == MixStep::gate || step == MixStep::through_gate,
                 reads_d = step == MixStep::through_gate;
  const int64_t begin = int64_t(blockIdx.x) * kOfBlock + int64_t(threadIdx.x) * kWide;
  const bool vectorial = (reinterpret_cast<uintptr_t>(p.a) | reinterpret_cast<uintptr_t>(p.b) |
                          reinterpret_cast<uintptr_t>(p.c) | reinterpret_cast<uintptr_t>(p.d)) %
                             16 ==
                         0;
  float a[kTimes][kWide], b[kTimes][kWide] = {}, c[kTimes][kWide] = {}, d[kTimes][kWide] = {};
#pragma unroll
  for (int n = 0; n < kTimes; ++n) {
    const int64_t at = begin + n * kWide * kBlock;
    const int valid = int(max(int64_t(0), min(int64_t(kWide), p.count - at)));
    const bool whole = vectorial && valid == kWide;
    load_eight(static_cast<const In*>(p.a) + at, valid, whole, a[n]);
    if constexpr (reads_b) load_eight(static_cast<const In*>(p.b) + at, valid, whole, b[n]);
    if constexpr (reads_c) load_eight(static_cast<const In*>(p.c) + at, valid, whole, c[n]);
    if constexpr (reads_d) load_eight(static_cast<const In*>(p.d) + at, valid, whole, d[n]);
  }
#pragma unroll
  for (int n = 0; n < kTimes; ++n) {
    const int64_t at = begin + n * kWide * kBlock;
    const int valid = int(max(int64_t(0), min(int64_t(kWide), p.count - at)));
#pragma unroll
    for (int i = 0; i < kWide; ++i) change<step>(a[n][i], b[n][i], c[n][i], d[n][i]);
    store_eight(a[n], static_cast<In*>(p.a) + at, valid, vectorial);
    if constexpr (writes_b) store_eight(b[n], static_cast<In*>(p.b) + at, valid, vectorial);
  }
}

template <class In, MixStep step>
int start(const MixStepParams& p, void* stream) {
  return launch(mix_step<In, step>, (p.count + kOfBlock - 1) / kOfBlock, kBlock, 0, stream, p);
}

}  // namespace

int launch_mix_step(const MixStepParams& p, MixStep step, Dtype dtype, void* stream) {
  return with_input(dtype, [&](auto in) {
    using In = decltype(in);
    switch (step) {
      case MixStep::square:
        return start<In, MixStep::square>(p, stream);
      case MixStep::gate:
        return start<In, MixStep::gate>(p, stream);
      case MixStep::through_squares:
        return start<In, MixStep::through_squares>(p, stream);
      default:
        return start<In, MixStep::through_gate>(p, stream);
    }
  });
}

}  // namespace sola::cuda
