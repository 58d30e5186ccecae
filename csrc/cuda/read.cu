// what queries and keys read from one global state (read_walk.cuh), a range of tokens to a block

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/read_walk.cuh"

namespace sola::cuda {
namespace {

template <class In, int T>
__global__ void __launch_bounds__(kThreads, resident_reads(kDtype<In>, T, false)) read_values(ReadParams p) {
  const TokenRange at = range_of(p, blockIdx.x);
  Values<In, T> values(p, at);
  wait_for_results();
  values.walk(load_state<In, T>(p, at));
}

template <class In, int T>
__global__ void __launch_bounds__(kThreads, resident_reads(kDtype<In>, T, true)) query_gradients(ReadParams p) {
  let_next_start();
  const TokenRange at = range_of(p, blockIdx.x);
  QueryGradients<In, T> gradients(p, at);
  const auto memory = load_state<In, T>(p, at);
  unsigned char* const rest = shared_memory() + StateMemory<In, T>::kBytes;
  QuerySums<In, T> state;
  gradients.walk(memory, rest, state);
  if constexpr (kSums<T>) {
    sync_block();
    state.write(p.sums + int64_t(blockIdx.x) * (p.D * p.V + p.D), p.D, p.V, 0, 0, reinterpret_cast<float*>(rest));
  }
}

template <class In, int T>
__global__ void __launch_bounds__(kThreads, resident_reads(kDtype<In>, T, true)) key_gradients(ReadParams p) {
  const TokenRange at = range_of(p, blockIdx.x);
  KeyGradients<In, T> gradients(p, at);
  wait_for_results();
  gradients.walk(load_state<In, T>(p, at));
}

template <class In, int T>
int start(const ReadParams& p, Read kind, void* stream) {
  const auto kernel = kind == Read::values            ? read_values<In, T>
                      : kind == Read::query_gradients ? query_gradients<In, T>
                                                      : key_gradients<In, T>;
  size_t bytes = StateMemory<In, T>::kBytes;
  if (kind == Read::query_gradients && kSums<T>) bytes += QueryTiles<In, T>::kBuffers * QueryTiles<In, T>::kBytes;
  // the first kernel of a backward has nothing of this call in front of it
  const bool early = kind != Read::query_gradients;
  return launch(kernel, p.batches * p.heads * p.ranges, kThreads, bytes, stream, p, Manner{0, early});
}

}  // namespace

int launch_read(const ReadParams& p, Read kind, Dtype dtype, void* stream) {
  if (!fits_shared(dtype, p.D, p.V)) return launch_wide_read(p, kind, dtype, stream);
  return with_input(dtype, [&](auto in) {
    using In = decltype(in);
    return with_width<32, 64, fits_shared(kDtype<In>, 128, 128) ? 128 : 64>(
        p.D > p.V ? p.D : p.V, [&](auto width) { return start<In, decltype(width)::value>(p, kind, stream); });
  });
}

}  // namespace sola::cuda
