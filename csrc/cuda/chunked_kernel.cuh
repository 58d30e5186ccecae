// the walk of chunked_walk.cuh as a kernel: for outputs and the gradient of v, or for the gradients of q and k
#pragma once

#include "cuda/chunked_walk.cuh"
#include "cuda/launch.h"

namespace sola::cuda {

enum class Job { values, gradients };

// tensors of a walk, as ChunkWalkParams calls them
enum WalkIndex { kA, kB, kY, kX, kOut };

// Everything that a block keeps while it walks. The companion is Σ φ(b), of values, or Σ φ(y), where every warp keeps
// the columns that it owns.
template <class In, int K, Job job>
struct Walker {
  using Tiles = WalkTiles<In, K>;
  using Shape = typename Tiles::Shape;
  using Mul = typename Tiles::Mul;
  static constexpr int kThreads = Shape::kThreads, kSlab = Shape::kSlab;
  static constexpr bool kValues = job == Job::values;
  // Rows of the result that a warp has in registers at a time, and loads of a thread on their way, 16 bytes each: as
  // many as leave nothing to spill. Rows have been asked for long before they are loaded.
  static constexpr int kRows = is_half<Mul> && (K == 64 || K == 128) ? 32 : kTile;
  static constexpr int kAhead = is_half<Mul> ? (K == 128 ? 2 : 4) : K == 256 ? 1 : 4;
  static_assert(Shape::kSlabs == 1 || kRows == kTile);
  using Out = Sums<kRows / 16, 2>;

  const ChunkWalkParams& p;
  const Tiles tiles;
  ChunkNumbers& numbers;
  const WalkPlace& at;
  float state[1][K / 8][4];
  float along_companion = 0.0f;

  SOLA_DEVICE explicit Walker(const ChunkWalkParams& params)
      : p(params), tiles{shared_memory()}, numbers(tiles.numbers()), at(numbers.place) {
    find_place<Shape::kPart>(numbers, p.call, p.states != nullptr, [&] {
      meet_tensor<In>(numbers, kA, p.a, p.depth);
      meet_tensor<In>(numbers, kB, p.b, p.depth);
      meet_tensor<In>(numbers, kY, p.y, p.width);
      if (!kValues) meet_tensor<In>(numbers, kX, p.x, p.width);
      meet_tensor<In>(numbers, kOut, p.out, p.width);
    });
  }

  SOLA_DEVICE int first_column() const { return at.column + 16 * warp_of(); }

  // what enters the stretch, which kernels before this one have summed up
  SOLA_DEVICE void enter() {
    load_powers<kThreads>(numbers, p.call, at, false);
    const bool entered = at.entered;
    const int64_t products = p.depth * p.width, count = products + (kValues ? p.depth : p.width);
    const float* from = p.states + (int64_t(at.head) * p.call.stretches + at.stretch) * count;
    for_sums<1, K / 8>([&](int, int n, int i, int row, int k) {
      const int64_t y = first_column() + row;
      const bool exists = entered && k < p.depth && y < p.width;
      state[0][n][i] = exists ? from[kValues ? k * p.width + y : y * p.depth + k] : 0.0f;
    });
    const int64_t first = kValues ? 0 : at.column, most = kValues ? p.depth : p.width;
    for (int i = int(threadIdx.x); i < (kValues ? K : Shape::kPart); i += kThreads)
      numbers.companion[i] = entered && first + i < most ? from[products + first + i] : 0.0f;
  }

  SOLA_DEVICE void load_token_numbers(const ChunkPlace& chunk) {
    load_numbers<kThreads>(numbers.column_weight, p.column_weight, p.call, at, chunk, 1.0f);
    load_fading<kThreads>(numbers, p.call, chunk);
    if constexpr (!kValues) {
      load_numbers<kThreads>(numbers.row_weight, p.row_weight, p.call, at, chunk, 1.0f);
      load_numbers<kThreads>(numbers.row_coefficient, p.row_coefficient, p.call, at, chunk, 0.0f);
      load_numbers<kThreads>(numbers.column_coefficient, p.column_coefficient, p.call, at, chunk, 0.0f);
      // the same threads have written both factors
      for (int i = int(threadIdx.x); i < kTile; i += kThreads)
        numbers.companion_fading[i] = numbers.fading[i] * (p.column_coefficient ? numbers.column_coefficient[i] : 1.0f);
    }
  }

  // f(columns, load, how numbers change on the way) for the columns of a and b from `column`, and with the first of
  // them for y
  template <class F>
  SOLA_DEVICE void for_tiles(int column, const F& f) const {
    constexpr std::integral_constant<int, kSlab> deep{};
    constexpr std::integral_constant<int, Shape::kPart> wide{};
    using Load = TileLoad<In, Mul>;
    const bool mapped = p.map != FeatureMap::identity;
    const Features<is_half<In>> map{p.map};
    const auto weigh_row = [&](int row, float number) { return numbers.row_weight[row] * number; };
    const auto weigh_column = [&](int row, float number) { return numbers.column_weight[row] * number; };
    const bool weighted = p.column_weight != nullptr;
    Load a{columns_of(chunk_rows<In>(numbers, kA, p.a, p.depth), column, kSlab), tiles.a(), Tiles::kDeep,
           numbers.tensors[kA].vectorial, mapped};
    Load b{columns_of(chunk_rows<In>(numbers, kB, p.b, p.depth), column, kSlab), tiles.b(), Tiles::kDeep,
           numbers.tensors[kB].vectorial, mapped};
    Load y{columns_of(chunk_rows<In>(numbers, kY, p.y, p.width), at.column, Shape::kPart), tiles.y(), Tiles::kWide,
           numbers.tensors[kY].vectorial, weighted};
    if constexpr (kValues) {
      f(deep, a, map);
      f(deep, b, map);
      if (column == 0) f(wide, y, weigh_column);
    } else {
      a.changes = p.row_weight != nullptr;
      b.changes = weighted;
      y.changes = mapped;
      f(deep, a, weigh_row);
      f(deep, b, weigh_column);
      if (column == 0) f(wide, y, map);
    }
  }

  SOLA_DEVICE void load_tiles(int column) const {
    for_tiles(column, [](auto columns, const auto& load, const auto& change) {
      start_tile<kTile, decltype(columns)::value, kThreads, kAhead>(load, change);
    });
    commit_copies();
    wait_copies<0>();
    for_tiles(column, [](auto columns, const auto& load, const auto& change) {
      finish_tile<kTile, decltype(columns)::value, kThreads>(load, change);
    });
  }

  // what the walk comes to after this chunk
  SOLA_DEVICE void prefetch_next() {
    const auto next = [&](int index, const View& view, int64_t columns) {
      return next_rows<In>(numbers, p.call, index, view, columns);
    };
    prefetch_rows<K, kThreads>(next(kA, p.a, p.depth));
    prefetch_rows<K, kThreads>(next(kB, p.b, p.depth));
    const auto part = [&](int index, const View& view) {
      return columns_of(next(index, view, p.width), at.column, Shape::kPart);
    };
    prefetch_rows<Shape::kPart, kThreads>(part(kY, p.y));
    if (!kValues && p.walk != Walk::first && p.map != FeatureMap::identity)
      prefetch_rows<Shape::kPart, kThreads>(part(kX, p.x));
  }

  // pairs to shared memory, weighted; of values their sums by rows, for the normaliser
  SOLA_DEVICE void finish_pairs(typename Shape::Pairs& pairs) {
    float total[Shape::kPairRows / 16][2] = {};
    for_pairs<Shape>(numbers, [&](int m, int n, int i, int row, int column, float weight) {
      float number = pairs[m][n][i];
      if constexpr (!kValues) number += numbers.row_coefficient[row] + numbers.column_coefficient[column];
      pairs[m][n][i] = weight == 0.0f ? 0.0f : weight * number;
      total[m][i / 2] += pairs[m][n][i];
    });
    store_pairs(pairs, tiles);
    if constexpr (kValues) {
      if (!p.companion) return;
#pragma unroll
      for (int m = 0; m < Shape::kPairRows / 16; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float sum = quad_sum(total[m][half]);
          const int row = pair_row<Shape>() + 16 * m + lane_of() / 4 + 8 * half;
          if (lane_of() % 4 == 0) numbers.pair_sums[warp_of() / Shape::kDown * kTile + row] = sum;
        }
    }
  }

  // φ(q)·companion
  SOLA_DEVICE void read_companion(int column, bool last) {
    constexpr int kPerRow = kThreads / kTile;
    const float sum = row_product<kThreads, kSlab>(Operand<Mul>{tiles.a(), Tiles::kDeep}, numbers.companion + column);
    along_companion = column == 0 ? sum : along_companion + sum;
    if (last && int(threadIdx.x) % kPerRow == 0) numbers.along_companion[int(threadIdx.x) / kPerRow] = along_companion;
  }

  // state and companion move to the other edge of the chunk, for the columns of a and b from kFirst
  template <int kFirst>
  SOLA_DEVICE void carry(const ChunkPlace& chunk) {
    const float factor = numbers.powers[chunk.rows];
    carry_state<kFirst>(state, tiles, factor, numbers.fading);
    if (!p.companion) return;
    const auto add = [&](float& to, float sum) { to = fmaf(factor, to, sum); };
    if constexpr (kValues) {
      for_column_sums<kThreads, kSlab>(Operand<Mul>{tiles.b(), Tiles::kDeep}, numbers.fading,
                                       [&](int column, const float (&sums)[2]) {
                                         add(numbers.companion[kFirst + column], sums[0]);
                                         add(numbers.companion[kFirst + column + 1], sums[1]);
                                       });
    } else if constexpr (kFirst + kSlab == K) {
      // all warps have read the companion
      sync_block();
      for_column_sums<kThreads, Shape::kPart>(Operand<Mul>{tiles.y(), Tiles::kWide}, numbers.companion_fading,
                                              [&](int column, const float (&sums)[2]) {
                                                add(numbers.companion[column], sums[0]);
                                                add(numbers.companion[column + 1], sums[1]);
                                              });
    }
  }

  // The columns of a and b from kFirst: pairs, what the state says, and but for the last of them the state's way on.
  // Recursion is what lets registers be named.
  template <int kFirst>
  SOLA_DEVICE void add_slabs(const ChunkPlace& chunk, typename Shape::Pairs& pairs, Out& out) {
    constexpr bool kLast = kFirst + kSlab == K;
    if constexpr (kFirst > 0) sync_block();
    load_tiles(kFirst);
    sync_block();
    if (kFirst == 0 && chunk.carry) prefetch_next();
    multiply_pairs(pairs, tiles);
    if constexpr (kLast) finish_pairs(pairs);
    if (kValues && p.companion) read_companion(kFirst, kLast);
    if constexpr (Shape::kSlabs > 1) {
      if (chunk.state) read_state<kFirst>(out, state, tiles, 0);
    }
    if constexpr (!kLast) {
      if (chunk.carry) {
        if (kValues && p.companion) sync_block();
        carry<kFirst>(chunk);
      }
      add_slabs<kFirst + kSlab>(chunk, pairs, out);
    }
  }

  // what the state says to the rows from `first`, by the power of γ with which each reads it
  SOLA_DEVICE void fade_rows(Out& out, const ChunkPlace& chunk, int first) const {
#pragma unroll
    for (int m = 0; m < kRows / 16; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float power = numbers.powers[reads(p.call, chunk, first + 16 * m + 8 * half + lane_of() / 4)];
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i) out[m][n][2 * half + i] *= power;
      }
  }

  SOLA_DEVICE void visit(int step) {
    float out[kRows / 16][2][4];
    const ChunkPlace& chunk = come_to(numbers, p.call, step, [&](const ChunkPlace& here) { load_token_numbers(here); });
    {
      typename Shape::Pairs pairs;
      clear(pairs);
      clear(out);
      add_slabs<0>(chunk, pairs, out);
    }
    sync_block();
#pragma unroll
    for (int first = 0; first < kTile; first += kRows) {
      if constexpr (Shape::kSlabs == 1) clear(out);
      if (chunk.state) {
        if constexpr (Shape::kSlabs == 1) read_state<0>(out, state, tiles, first);
        fade_rows(out, chunk, first);
      }
      spread_pairs(out, tiles, first);
      for_results(out, tiles, first,
                  [&](int row, int column, float (&sums)[8]) { write_row(chunk, row, column, sums); });
    }
    if (chunk.carry) carry<K - kSlab>(chunk);
  }

  // 1/normaliser of a row; the first of two walks leaves its share
  SOLA_DEVICE float inverse_of(const ChunkPlace& chunk, int row, bool writes) {
    const int64_t token = at.head * p.call.tokens + chunk.first + row;
    float sum = numbers.pair_sums[row];
    if (Shape::kAcross > 1) sum += numbers.pair_sums[kTile + row];
    if (chunk.state) sum = fmaf(numbers.powers[reads(p.call, chunk, row)], numbers.along_companion[row], sum);
    if (p.walk == Walk::first) {
      if (writes) p.partial_normaliser[token] = sum;
      return 1.0f;
    }
    if (p.walk == Walk::second) sum += p.partial_normaliser[token];
    sum += p.eps;
    if (writes) p.normaliser[token] = sum;
    return reciprocal(sum);
  }

  // sums of a row to what the caller gets: what only gradients add, and their slope
  SOLA_DEVICE void add_companion(const ChunkPlace& chunk, int row, int column, float (&sums)[8]) {
    const float share = p.row_coefficient ? numbers.row_coefficient[row] : 1.0f;
    const float weight = numbers.powers[reads(p.call, chunk, row)] * share;
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[i] = fmaf(weight, numbers.companion[column + i], sums[i]);
  }
  SOLA_DEVICE void multiply_slope(int row, int column, int valid, float (&sums)[8]) {
    if (p.map == FeatureMap::identity) return;
    const auto x = chunk_rows<In>(numbers, kX, p.x, p.width);
    float phi[8];
    load_eight(x.data + row * x.stride + column, valid, numbers.tensors[kX].vectorial, phi);
    Features<is_half<In>>{p.map}(0, phi);
    multiply_slopes(p.map, phi, sums);
  }

  // sums of a side become sums of both: false for the first of two walks, which leaves its own
  SOLA_DEVICE bool join_walks(const ChunkPlace& chunk, int row, int column, int valid, float (&sums)[8]) {
    if (p.walk == Walk::only) return true;
    float* partial = p.partial + (at.head * p.call.tokens + chunk.first + row) * p.width + column;
    const bool vectorial = p.width % 4 == 0;
    if (p.walk == Walk::first) {
      store_eight(sums, partial, valid, vectorial);
      return false;
    }
    float others[8];
    load_eight(static_cast<const float*>(partial), valid, vectorial, others);
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[i] += others[i];
    return true;
  }

  // the columns of the result that this lane writes, as for_results has them
  SOLA_DEVICE Rows<In> own_results() const {
    const auto out = columns_of(chunk_rows<In>(numbers, kOut, p.out, p.width), at.column + result_column(), 8);
    return {const_cast<In*>(out.data), out.stride, out.columns > 0 ? out.rows : 0, out.columns};
  }

  SOLA_DEVICE void write_row(const ChunkPlace& chunk, int row, int in_part, float (&sums)[8]) {
    const Rows<In> to = own_results();
    if (row >= to.rows) return;
    const int column = at.column + in_part;
    float factor = 1.0f;
    if constexpr (kValues) {
      if (p.companion) factor = inverse_of(chunk, row, column == 0);
    } else {
      if (p.companion && chunk.state) add_companion(chunk, row, in_part, sums);
    }
    if (!join_walks(chunk, row, column, to.columns, sums)) return;
    if constexpr (!kValues) {
      multiply_slope(row, column, to.columns, sums);
    } else if (p.companion) {
#pragma unroll
      for (int i = 0; i < 8; ++i) sums[i] *= factor;
    }
    store_eight(sums, to.data + row * to.stride, to.columns, numbers.tensors[kOut].vectorial);
  }
};

template <class In, int K, Job job>
__global__ void __launch_bounds__(WalkShape<In, K>::kThreads, WalkShape<In, K>::kBlocks) walk(ChunkWalkParams p) {
  Walker<In, K, job> walker(p);
  walker.enter();
#pragma unroll 1
  for (int step = 0; step < walker.at.chunks; ++step) walker.visit(step);
}

template <Job job>
int launch_walk(const ChunkWalkParams& p, Dtype dtype, void* stream) {
  return with_input(dtype, [&](auto in) {
    using In = decltype(in);
    return with_width<32, 64, 128, 256>(p.depth, [&](auto width) {
      constexpr int K = decltype(width)::value;
      using Shape = WalkShape<In, K>;
      const int64_t parts = (p.width + Shape::kPart - 1) / Shape::kPart;
      return launch(walk<In, K, job>, p.call.batches * p.call.heads * p.call.stretches * parts, Shape::kThreads,
                    WalkTiles<In, K>::kBytes, stream, p);
    });
  });
}

}  // namespace sola::cuda
