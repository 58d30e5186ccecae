// linear attention in chunks: the gradient of the decay
//
//     d log γ = Σ_i [ r_i dO_i · (Σ_j |i−j| w_ij φ(q_i)·φ(k_j) v_j) + dd_i Σ_j |i−j| w_ij φ(q_i)·φ(k_j) ]
//
// the outputs' and normalisers' derivative, walked like the outputs, times their gradients. What a row reads lies
// e + δ tokens away: e to the edge of its chunk, δ from there, so Z has a derivative Z′ = Σ_j δ_j γ^δ_j b_jᵀ y_j beside
// it. The sum is linear in the columns of q and k, and a block takes as many as leave both in registers.

#include "cuda/chunked_walk.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.h"

namespace sola::cuda {
namespace {

enum TangentIndex { kQ, kK, kV, kGradOut };

template <class In, int K>
struct Tangent {
  using Tiles = WalkTiles<In, K>;
  using Shape = typename Tiles::Shape;
  using Mul = typename Tiles::Mul;
  static constexpr int kThreads = Shape::kThreads, kPerRow = kThreads / kTile, kRows = 16;
  using Out = Sums<kRows / 16, 2>;
  static_assert(Shape::kSlabs == 1 && K <= 128);

  const ChunkTangentParams& p;
  const Tiles tiles;
  ChunkNumbers& numbers;
  const WalkPlace& at;
  float state[1][K / 8][4], tangent[1][K / 8][4];
  double total = 0.0;

  SOLA_DEVICE explicit Tangent(const ChunkTangentParams& params)
      : p(params), tiles{shared_memory()}, numbers(tiles.numbers()), at(numbers.place) {
    find_place<1>(numbers, p.call, p.states != nullptr, [&] {
      meet_tensor<In>(numbers, kQ, p.q, p.D);
      meet_tensor<In>(numbers, kK, p.k, p.D);
      meet_tensor<In>(numbers, kV, p.v, p.V);
      meet_tensor<In>(numbers, kGradOut, p.grad_out, p.V);
    });
  }

  // first columns of q and k, and of v
  SOLA_DEVICE int parts() const { return int((p.V + Shape::kPart - 1) / Shape::kPart); }
  SOLA_DEVICE int d0() const { return at.column / parts() * K; }
  SOLA_DEVICE int v0() const { return at.column % parts() * Shape::kPart; }
  // what this block has of queries or keys, and of values or their gradient
  SOLA_DEVICE Rows<const In> deep(Rows<const In> rows) const { return columns_of(rows, d0(), K); }
  SOLA_DEVICE Rows<const In> wide(Rows<const In> rows) const { return columns_of(rows, v0(), Shape::kPart); }
  // companions of Z and Z′
  SOLA_DEVICE float* companion() const { return numbers.companion; }
  SOLA_DEVICE float* companion_tangent() const { return numbers.companion + K; }
  // δ γ^δ of the chunk's tokens, beside numbers.fading
  SOLA_DEVICE float* fading_tangent() const { return numbers.column_weight; }

  SOLA_DEVICE void enter() {
    load_powers<kThreads>(numbers, p.call, at, true);
    const bool entered = at.entered;
    const int64_t products = p.D * p.V, count = products + p.D;
    const int64_t first = (int64_t(at.head) * p.call.stretches + at.stretch) * count;
    for_sums<1, K / 8>([&](int, int n, int i, int row, int column) {
      const int64_t v = v0() + 16 * warp_of() + row, d = d0() + column;
      const bool exists = entered && d < p.D && v < p.V;
      state[0][n][i] = exists ? p.states[first + d * p.V + v] : 0.0f;
      tangent[0][n][i] = exists ? p.tangents[first + d * p.V + v] : 0.0f;
    });
    for (int i = int(threadIdx.x); i < K; i += kThreads) {
      const bool exists = entered && d0() + i < p.D;
      companion()[i] = exists ? p.states[first + products + d0() + i] : 0.0f;
      companion_tangent()[i] = exists ? p.tangents[first + products + d0() + i] : 0.0f;
    }
  }

  SOLA_DEVICE void load(const ChunkPlace& chunk) {
    load_numbers<kThreads>(numbers.row_weight, p.inverse, p.call, at, chunk, 1.0f);
    load_numbers<kThreads>(numbers.row_coefficient, p.grad_denominator, p.call, at, chunk, 0.0f);
    load_fading<kThreads>(numbers, p.call, chunk);
    for (int i = int(threadIdx.x); i < kTile; i += kThreads) {
      const int distance = edge_distance(p.call, chunk, i);
      fading_tangent()[i] = i < chunk.rows ? float(distance) * numbers.powers[distance] : 0.0f;
    }
  }

  // queries, keys and values of the chunk
  SOLA_DEVICE void load_tiles() const {
    using Load = TileLoad<In, Mul>;
    const bool mapped = p.map != FeatureMap::identity;
    const Features<is_half<In>> map{p.map};
    const auto is_vectorial = [&](int index) { return numbers.tensors[index].vectorial; };
    const Load q{deep(chunk_rows<In>(numbers, kQ, p.q, p.D)), tiles.a(), Tiles::kDeep, is_vectorial(kQ), mapped};
    const Load k{deep(chunk_rows<In>(numbers, kK, p.k, p.D)), tiles.b(), Tiles::kDeep, is_vectorial(kK), mapped};
    const Load v{wide(chunk_rows<In>(numbers, kV, p.v, p.V)), tiles.y(), Tiles::kWide, is_vectorial(kV), false};
    start_tile<kTile, K, kThreads>(q, map);
    start_tile<kTile, K, kThreads>(k, map);
    start_tile<kTile, Shape::kPart, kThreads>(v, [](int, float number) { return number; });
    commit_copies();
    wait_copies<0>();
    finish_tile<kTile, K, kThreads>(q, map);
    finish_tile<kTile, K, kThreads>(k, map);
    sync_block();
  }

  SOLA_DEVICE void prefetch_next() const {
    const auto next = [&](int index, const View& view, int64_t columns) {
      return next_rows<In>(numbers, p.call, index, view, columns);
    };
    prefetch_rows<K, kThreads>(deep(next(kQ, p.q, p.D)));
    prefetch_rows<K, kThreads>(deep(next(kK, p.k, p.D)));
    prefetch_rows<Shape::kPart, kThreads>(wide(next(kV, p.v, p.V)));
    prefetch_rows<Shape::kPart, kThreads>(wide(next(kGradOut, p.grad_out, p.V)));
  }

  SOLA_DEVICE void multiply_distances() {
    typename Shape::Pairs pairs;
    clear(pairs);
    multiply_pairs(pairs, tiles);
    float of_normaliser = 0.0f;
    for_pairs<Shape>(numbers, [&](int m, int n, int i, int row, int, float weight) {
      pairs[m][n][i] = weight == 0.0f ? 0.0f : weight * pairs[m][n][i];
      of_normaliser = fmaf(numbers.row_coefficient[row], pairs[m][n][i], of_normaliser);
    });
    if (v0() == 0 && p.grad_denominator) total += double(of_normaliser);
    store_pairs(pairs, tiles);
  }

  // what the rows' normalisers have from the companions
  SOLA_DEVICE void add_normalisers(const ChunkPlace& chunk) {
    const int row = int(threadIdx.x) / kPerRow, exponent = reads(p.call, chunk, row);
    const Operand<Mul> phi{tiles.a(), Tiles::kDeep};
    const float along = row_product<kThreads, K>(phi, companion());
    const float along_tangent = row_product<kThreads, K>(phi, companion_tangent());
    if (int(threadIdx.x) % kPerRow > 0) return;
    const float grad = numbers.powers[exponent] * numbers.row_coefficient[row];
    total += double(grad * fmaf(float(exponent), along, along_tangent));
  }

  SOLA_DEVICE void add_outputs(const ChunkPlace& chunk, const Out& out, int first) {
    const auto grads = wide(chunk_rows<In>(numbers, kGradOut, p.grad_out, p.V));
    const bool vectorial = numbers.tensors[kGradOut].vectorial;
    for_results(out, tiles, first, [&](int row, int column, float (&sums)[8]) {
      if (row >= chunk.rows || column >= grads.columns) return;
      float grad[8], sum = 0.0f;
      load_eight(grads.data + row * grads.stride + column, grads.columns - column, vectorial, grad);
#pragma unroll
      for (int i = 0; i < 8; ++i) sum = fmaf(grad[i], sums[i], sum);
      total += double(numbers.row_weight[row] * sum);
    });
  }

  SOLA_DEVICE void carry(const ChunkPlace& chunk) {
    const float factor = numbers.powers[chunk.rows], tokens = float(chunk.rows);
#pragma unroll
    for (int n = 0; n < K / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) tangent[0][n][i] = fmaf(tokens, state[0][n][i], tangent[0][n][i]);
    carry_state<0>(tangent, tiles, factor, fading_tangent());
    carry_state<0>(state, tiles, factor, numbers.fading);
    if (!p.grad_denominator) return;
    const Operand<Mul> phi{tiles.b(), Tiles::kDeep};
    for_column_sums<kThreads, K>(phi, fading_tangent(), [&](int column, const float (&sums)[2]) {
      for (int i = column; i < column + 2; ++i)
        companion_tangent()[i] = fmaf(factor, fmaf(tokens, companion()[i], companion_tangent()[i]), sums[i - column]);
    });
    for_column_sums<kThreads, K>(phi, numbers.fading, [&](int column, const float (&sums)[2]) {
      for (int i = column; i < column + 2; ++i) companion()[i] = fmaf(factor, companion()[i], sums[i - column]);
    });
  }

  // the derivative of the outputs of rows from `first`
  SOLA_DEVICE void differentiate(const ChunkPlace& chunk, int first) {
    Out out;
    clear(out);
    if (chunk.state) {
      const auto scale = [&](auto factor) {
        for_sums<kRows / 16, 2>(
            [&](int m, int n, int i, int row, int) { out[m][n][i] *= factor(reads(p.call, chunk, first + row)); });
      };
      read_state<0>(out, state, tiles, first);
      scale([](int exponent) { return float(exponent); });
      read_state<0>(out, tangent, tiles, first);
      scale([&](int exponent) { return numbers.powers[exponent]; });
    }
    spread_pairs(out, tiles, first);
    add_outputs(chunk, out, first);
  }

  SOLA_DEVICE void visit(int step) {
    const ChunkPlace& chunk = come_to(numbers, p.call, step, [&](const ChunkPlace& here) { load(here); });
    load_tiles();
    if (chunk.carry) prefetch_next();
    multiply_distances();
    if (chunk.state && v0() == 0 && p.grad_denominator) add_normalisers(chunk);
    sync_block();
#pragma unroll
    for (int first = 0; first < kTile; first += kRows) differentiate(chunk, first);
    if (chunk.carry) carry(chunk);
  }

  // the threads' totals in their order
  SOLA_DEVICE void write() {
    double* totals = reinterpret_cast<double*>(tiles.memory);
    sync_block();
    totals[threadIdx.x] = total;
    sync_block();
    if (threadIdx.x > 0) return;
    for (int i = 1; i < kThreads; ++i) total += totals[i];
    p.shares[at.head * p.per_head + at.column * p.call.stretches + at.stretch] = float(total);
  }
};

template <class In, int K>
__global__ void __launch_bounds__(WalkShape<In, K>::kThreads, 1) walk_tangent(ChunkTangentParams p) {
  Tangent<In, K> tangent(p);
  tangent.enter();
#pragma unroll 1
  for (int step = 0; step < tangent.at.chunks; ++step) tangent.visit(step);
  tangent.write();
}

template <class In, int K>
int start(const ChunkTangentParams& p, void* stream) {
  const int64_t blocks =
      p.call.batches * p.call.heads * p.call.stretches * tangent_blocks(is_half<typename WideRange<In>::Mul>, p.D, p.V);
  return launch(walk_tangent<In, K>, blocks, WalkShape<In, K>::kThreads, WalkTiles<In, K>::kBytes, stream, p);
}

}  // namespace

int launch_chunk_tangent(const ChunkTangentParams& p, Dtype dtype, void* stream) {
  switch (tangent_depth(dtype == Dtype::bf16, p.D)) {
    case 32:
      return with_input(dtype, [&](auto in) { return start<decltype(in), 32>(p, stream); });
    case 64:
      return with_input(dtype, [&](auto in) { return start<decltype(in), 64>(p, stream); });
    default:
      return start<Bf16, 128>(p, stream);
  }
}

}  // namespace sola::cuda
