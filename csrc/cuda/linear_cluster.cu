// linear attention with one state by one kernel: what a cluster of blocks has gathered it adds up and reads again
//
// The blocks of a cluster own ranges of one head's tokens. Each sums up its own, then a share of the state over all of
// them, in their order, and hands that to the others: the state never leaves shared memory on its way. Clusters are of
// compute capability 9.0 and later.

#include "cuda/gather_walk.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/read_walk.cuh"

namespace sola::cuda {
namespace {

constexpr size_t larger(size_t a, size_t b) { return a < b ? b : a; }

// (S, z) as a block sums it up, then of the whole cluster, dense as in memory; behind them nothing
template <class In, int T>
struct ClusterState {
  static constexpr int kNumbers = T * T + T;
  static constexpr size_t kBytes = 2 * sizeof(float) * kNumbers;
  static_assert(StateMemory<In, T>::kBytes % 16 == 0 && kNumbers % 4 == 0);

  float *partial, *total;

  SOLA_DEVICE explicit ClusterState(unsigned char* memory)
      : partial(reinterpret_cast<float*>(memory)), total(partial + kNumbers) {}

  // The totals of all blocks' parts; `keep(i, sum)` sees every number once, in one of the blocks.
  template <class F>
  SOLA_DEVICE void add_up(int numbers, int blocks, const F& keep) const {
    sync_cluster();
    const int vectors = (numbers + 3) / 4, share = (vectors + blocks - 1) / blocks, first = cluster_rank() * share;
    for (int i = first + int(threadIdx.x); i < min(first + share, vectors); i += kThreads) {
      float sum[4] = {};
#pragma unroll 4
      for (int block = 0; block < kMostClusterBlocks; ++block) {
        if (block == blocks) break;
        float part[4];
        unpack<float>(load_vec4(static_cast<const Vec4*>(of_rank(partial, block)) + i), part);
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[j] += part[j];
      }
      for (int block = 0; block < blocks; ++block)
        store_vector(sum, static_cast<float*>(of_rank(total, block)) + 4 * i);
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (4 * i + j < numbers) keep(4 * i + j, sum[j]);
    }
    sync_cluster();
  }
};

template <class In, int T>
constexpr size_t kForwardBytes = larger(kGatherBytes<In, T>, StateMemory<In, T>::kBytes + ClusterState<In, T>::kBytes);

template <class In, int T>
__global__ void __launch_bounds__(kThreads, resident_clusters(kDtype<In>, T, false)) cluster_forward(ClusterParams p) {
  const int D = int(p.gather.D), V = int(p.gather.V), blocks = int(p.gather.ranges);
  GatherSums<In, T> sums;
  gather_tokens<In, T>(p.gather, range_of(p.gather, blockIdx.x), 0, 0, sums);
  const TokenRange at = range_of(p.read, blockIdx.x);
  Values<In, T> values(p.read, at);
  const StateMemory<In, T> memory{shared_memory()};
  const ClusterState<In, T> state(shared_memory() + StateMemory<In, T>::kBytes);
  sums.write(state.partial, D, V, 0, 0, state.total);
  state.add_up(D * V + D, blocks, [&](int i, float sum) {
    if (i < D * V) {
      p.state[at.head * D * V + i] = sum;
    } else {
      p.companion[at.head * D + i - D * V] = sum;
    }
  });
  memory.load(state.total, p.read.companion ? state.total + D * V : nullptr, D, V);
  sync_block();
  values.walk(memory);
}

template <class In, int T>
constexpr size_t kBackwardBytes =
    StateMemory<In, T>::kBytes +
    larger(QueryTiles<In, T>::kBuffers * QueryTiles<In, T>::kBytes, ClusterState<In, T>::kBytes);

template <class In, int T>
__global__ void __launch_bounds__(kThreads, resident_clusters(kDtype<In>, T, true))
    cluster_backward(ClusterBackwardParams p) {
  const int D = int(p.queries.D), V = int(p.queries.V), blocks = int(p.queries.ranges);
  unsigned char* const rest = shared_memory() + StateMemory<In, T>::kBytes;
  const ClusterState<In, T> state(rest);
  {
    const TokenRange at = range_of(p.queries, blockIdx.x);
    QueryGradients<In, T> gradients(p.queries, at);
    const auto memory = load_state<In, T>(p.queries, at);
    QuerySums<In, T> sums;
    gradients.walk(memory, rest, sums);
    sync_block();
    sums.write(state.partial, D, V, 0, 0, state.total);
  }
  const TokenRange at = range_of(p.keys, blockIdx.x);
  KeyGradients<In, T> gradients(p.keys, at);
  state.add_up(D * V + D, blocks, [](int, float) {});
  const StateMemory<In, T> memory{shared_memory()};
  memory.load(state.total, p.queries.companion ? state.total + D * V : nullptr, D, V);
  sync_block();
  gradients.walk(memory);
}

// f of the number type and head dim
template <class F>
int with_kind(Dtype dtype, int64_t dim, const F& f) {
  return with_input(
      dtype, [&](auto in) { return with_width<32, kClusterWidth>(dim, [&](auto width) { return f(in, width); }); });
}

}  // namespace

int launch_cluster_forward(const ClusterParams& p, Dtype dtype, void* stream) {
  const GatherParams& g = p.gather;
  return with_kind(dtype, max(g.D, g.V), [&](auto in, auto width) {
    using In = decltype(in);
    constexpr int T = decltype(width)::value;
    return launch(cluster_forward<In, T>, g.batches * g.heads * g.ranges, kThreads, kForwardBytes<In, T>, stream, p,
                  {int(g.ranges)});
  });
}

int launch_cluster_backward(const ClusterBackwardParams& p, Dtype dtype, void* stream) {
  const ReadParams& q = p.queries;
  return with_kind(dtype, max(q.D, q.V), [&](auto in, auto width) {
    using In = decltype(in);
    constexpr int T = decltype(width)::value;
    return launch(cluster_backward<In, T>, q.batches * q.heads * q.ranges, kThreads, kBackwardBytes<In, T>, stream, p,
                  {int(q.ranges)});
  });
}

}  // namespace sola::cuda
