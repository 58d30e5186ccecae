// softmax attention, backward: the weights are computed again from logsumexp
//
//   P = exp(scale·QKᵀ − lse)      dV = Pᵀ dO
//   dS = scale · P ∘ (dO Vᵀ − δ)  dK = dSᵀ Q    dQ = dS K      δ_i = dO_i · O_i
//
// One kernel, twice: rows are keys and columns queries for dK and dV, or the other way round for dQ. A block keeps its
// rows and walks over all columns, so that every sum is finished where it began, in a fixed order and without atomics.

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/softmax.cuh"

namespace sola::cuda {
namespace {

// kSmall: for devices with little shared memory
template <class In, int T, bool kSmall>
struct BackwardTiles {
  static constexpr int kWarps = (is_half<In> || T < 256 ? 4 : 2) / (kSmall ? 2 : 1);
  static constexpr int kRows = 16 * kWarps, kBlock = kWarp * kWarps;
  static constexpr int kColumns = kSmall ? 16 : is_half<In> ? (T < 128 ? 64 : 32) : (T < 256 ? 32 : 16);
  // sums of more head dims than this don't fit in registers: further blocks take the others
  static constexpr int kPart = T < 128 ? T : 128, kParts = T / kPart;
  static constexpr int kStride = kRowStride<In, T>, kScratch = kRowStride<In, kColumns>;
  static constexpr size_t kBytes =
      sizeof(In) * ((2 * kRows + 4 * kColumns) * kStride + (is_half<In> ? 0 : kRows * kScratch)) +
      sizeof(float2) * kColumns;
};

// the two tensors of one side: keys and values, or queries and gradients
struct Pair {
  View one, two;
};

template <class In, int kRows, int T, int kBlock>
SOLA_DEVICE void copy_pair(const Pair& from, const SoftmaxParams& p, const SoftmaxPlace& at, int64_t first,
                           int64_t tokens, In* to) {
  constexpr int stride = kRowStride<In, T>;
  const int rows = int(max(int64_t(0), min(int64_t(kRows), tokens - first)));
  copy_tile<kRows, T, kBlock>(
      Rows<const In>{row_of<const In>(from.one, at.batch, first, at.inner), from.one.token, rows, int(p.size.D)}, to,
      stride);
  copy_tile<kRows, T, kBlock>(
      Rows<const In>{row_of<const In>(from.two, at.batch, first, at.inner), from.two.token, rows, int(p.size.V)},
      to + kRows * stride, stride);
  commit_copies();
}

// scores and dO·V of a tile to P and dS; what is saved of a query comes from `of_query(i, column)`
template <Of of, int CT, class Query>
SOLA_DEVICE void differentiate(const SoftmaxParams& p, int64_t first_row, int64_t first_column, Sums<1, CT>& weights,
                               Sums<1, CT>& grads, const Query& of_query) {
  const float scale = float(p.scale), scale2 = scale * kLog2e;
  for_sums<1, CT>([&](int, int n, int i, int row, int column) {
    const int64_t r = first_row + row, c = first_column + column;
    const int64_t key = of == Of::keys ? r : c, query = of == Of::keys ? c : r;
    const bool visible = key < p.size.M && query < p.size.N && !(p.causal && key > query);
    const float2 saved = of_query(i, column);
    const float weight = visible ? fast_exp2(fmaf(weights[0][n][i], scale2, -saved.x)) : 0.0f;
    weights[0][n][i] = weight;
    grads[0][n][i] = visible ? weight * (grads[0][n][i] - saved.y) * scale : 0.0f;
  });
}

template <class In, class Tiles>
SOLA_DEVICE void write_part(const Sums<1, Tiles::kPart / 8>& sums, In* staging, const View& view,
                            const SoftmaxPlace& at, int64_t columns) {
  constexpr int stride = Tiles::kStride;
  sync_block();
  store_sums(sums, staging + 16 * warp_of() * stride, stride);
  sync_block();
  In* to = row_of<In>(view, at.batch, at.first, at.inner) + at.part * Tiles::kPart;
  store_tile<Tiles::kRows, Tiles::kPart, Tiles::kBlock>(
      staging, stride, Rows<In>{to, view.token, at.rows, int(columns) - at.part * Tiles::kPart});
}

template <class In, int T, Of of, bool kSmall>
__global__ void __launch_bounds__(BackwardTiles<In, T, kSmall>::kBlock, 1) backward(SoftmaxBackwardParams params) {
  using Tiles = BackwardTiles<In, T, kSmall>;
  constexpr int CB = Tiles::kColumns, stride = Tiles::kStride, NT = Tiles::kPart / 8;
  const SoftmaxParams& p = params.op;
  In* rows = reinterpret_cast<In*>(shared_memory());
  In* columns = rows + 2 * Tiles::kRows * stride;
  In* scratch = columns + 4 * CB * stride;
  float2* saved = reinterpret_cast<float2*>(scratch + (is_half<In> ? 0 : Tiles::kRows * Tiles::kScratch));
  scratch += 16 * warp_of() * Tiles::kScratch;

  const Pair keys{p.k, p.v}, queries{p.q, p.grad_out};
  const Pair mine = of == Of::keys ? keys : queries, others = of == Of::keys ? queries : keys;
  const int64_t my_tokens = of == Of::keys ? p.size.M : p.size.N, tokens = of == Of::keys ? p.size.N : p.size.M;
  const SoftmaxPlace at = place_of(p.size, my_tokens, Tiles::kRows, p.causal && of == Of::queries);
  // causal: queries see no later keys, keys are seen by no earlier queries
  const int64_t begin = of == Of::keys && p.causal ? at.first / CB * CB : 0;
  const int64_t end = of == Of::queries && p.causal ? min(tokens, int64_t(at.first + at.rows)) : tokens;
  const float2* of_queries = saved_of(params, at.head);

  copy_pair<In, Tiles::kRows, T, Tiles::kBlock>(mine, p, at, at.first, my_tokens, rows);
  copy_pair<In, CB, T, Tiles::kBlock>(others, p, at, begin, end, columns);
  float one[1][NT][4], two[1][of == Of::keys ? NT : 1][4];
  clear(one);
  clear(two);
  float2 of_row[2] = {};
  if (of == Of::queries) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t query = at.first + 16 * warp_of() + lane_of() / 4 + 8 * half;
      if (query < p.size.N) of_row[half] = of_queries[query];
    }
  }
  int stage = 0;
  for (int64_t first = begin; first < end; first += CB, stage ^= 1) {
    copy_pair<In, CB, T, Tiles::kBlock>(others, p, at, first + CB, end, columns + (stage ^ 1) * 2 * CB * stride);
    if (of == Of::keys && int(threadIdx.x) < CB) {
      const int64_t query = first + int(threadIdx.x);
      saved[threadIdx.x] = query < p.size.N ? of_queries[query] : float2{};
    }
    wait_copies<1>();
    sync_block();
    const In* column = columns + stage * 2 * CB * stride;
    const Operand<In> mine_one{rows + 16 * warp_of() * stride, stride};
    const Operand<In> mine_two{mine_one.data + Tiles::kRows * stride, stride};
    float weights[1][CB / 8][4], grads[1][CB / 8][4];
    clear(weights);
    clear(grads);
    multiply<Along::depth, Along::depth>(weights, mine_one, Operand<In>{column, stride}, T);
    multiply<Along::depth, Along::depth>(grads, mine_two, Operand<In>{column + CB * stride, stride}, T);
    differentiate<of, CB / 8>(p, at.first + 16 * warp_of(), first, weights, grads, [&](int i, int column_in_tile) {
      return of == Of::keys ? saved[column_in_tile] : of_row[i / 2];
    });
    // lanes may have parted over what is visible to them
    sync_warp();
    const Operand<In> pad{scratch, Tiles::kScratch};
    const int offset = at.part * Tiles::kPart;
    multiply_sums<Along::other>(one, grads, Operand<In>{column + offset, stride}, pad);
    if constexpr (of == Of::keys)
      multiply_sums<Along::other>(two, weights, Operand<In>{column + CB * stride + offset, stride}, pad);
    sync_block();
  }
  wait_copies<0>();
  write_part<In, Tiles>(one, rows, of == Of::keys ? p.grad_k : p.grad_q, at, p.size.D);
  if constexpr (of == Of::keys) write_part<In, Tiles>(two, rows, p.grad_v, at, p.size.V);
}

// what is saved of one query, by each warp
template <class In>
__global__ void __launch_bounds__(kThreads, 1) save_queries(SoftmaxBackwardParams params) {
  const SoftmaxParams& p = params.op;
  const int64_t index = int64_t(blockIdx.x) * (kThreads / kWarp) + warp_of(), head = index / p.size.N;
  if (index >= p.size.B * p.size.H * p.size.N) return;
  const int64_t query = index % p.size.N;
  const In* grad = row_of<const In>(p.grad_out, head / p.size.H, query, head % p.size.H);
  const In* out = row_of<const In>(p.out, head / p.size.H, query, head % p.size.H);
  float sum = 0.0f;
  for (int i = lane_of(); i < p.size.V; i += kWarp) sum = fmaf(to_float(grad[i]), to_float(out[i]), sum);
  sum = warp_sum(sum);
  if (lane_of() == 0) {
    const float lse = static_cast<const float*>(p.logsumexp)[index];
    reinterpret_cast<float2*>(params.saved)[index] = {lse * kLog2e, sum};
  }
}

template <class In, int T, Of of, bool kSmall = false>
int start(const SoftmaxBackwardParams& p, void* stream) {
  using Tiles = BackwardTiles<In, T, kSmall>;
  if constexpr (Tiles::kBytes > kLeastShared) {
    static_assert(!kSmall);
    if (!has_shared(Tiles::kBytes)) return start<In, T, of, true>(p, stream);
  }
  const AttentionSizes& s = p.op.size;
  const int64_t tokens = of == Of::keys ? s.M : s.N, tiles = (tokens + Tiles::kRows - 1) / Tiles::kRows;
  return launch(backward<In, T, of, kSmall>, s.B * s.H * tiles * Tiles::kParts, Tiles::kBlock, Tiles::kBytes, stream,
                p);
}

}  // namespace

int launch_softmax_save(const SoftmaxBackwardParams& p, Dtype dtype, void* stream) {
  const AttentionSizes& s = p.op.size;
  constexpr int warps = kThreads / kWarp;
  return with_input(dtype, [&](auto in) {
    return launch(save_queries<decltype(in)>, (s.B * s.H * s.N + warps - 1) / warps, kThreads, 0, stream, p);
  });
}

int launch_softmax_backward(const SoftmaxBackwardParams& p, Dtype dtype, void* stream) {
  return with_input(dtype, [&](auto in) {
    using In = decltype(in);
    return with_width<32, 64, 128, 256>(max(p.op.size.D, p.op.size.V), [&](auto width) {
      constexpr int T = decltype(width)::value;
      const int failed = start<In, T, Of::keys>(p, stream);
      return failed ? failed : start<In, T, Of::queries>(p, stream);
    });
  });
}

}  // namespace sola::cuda
