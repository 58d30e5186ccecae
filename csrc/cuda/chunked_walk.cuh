// linear attention in chunks of one tile: a block walks over the chunks of a stretch and carries the state with it
//
//     out_i = Σ_j γ^|i−j| X_ij y_j        X_ij = a_i·b_j (+ α′_i + β′_j)
//
// over the tokens j on one side of i. The state Z = Σ_j γ^(distance from the chunk's edge) b_jᵀ y_j lies transposed in
// registers, where a product leaves its sums: there it is the right operand of a·Z, too. A warp owns 16 columns of y,
// of the state and of the result; the pairs of a chunk are shared by all warps. docs/math.md derives the powers of γ.
#pragma once

#include "cuda/kernel_params.h"
#include "cuda/tile.cuh"

namespace sola::cuda {

// how a block of this type and depth (the columns of a and b, at most K) divides its work
template <class In, int K>
struct WalkShape {
  using Mul = typename WideRange<In>::Mul;
  static constexpr int kPart = walk_part(is_half<Mul>, K), kWarps = kPart / 16, kThreads = kWarps * kWarp;
  // columns of a and b that lie in shared memory at a time
  static constexpr int kMost = is_half<Mul> ? 128 : 64, kSlab = K < kMost ? K : kMost, kSlabs = K / kSlab;
  // the warps' shares of the 64 × 64 pairs
  static constexpr int kDown = kWarps < 4 ? kWarps : 4, kAcross = kWarps / kDown;
  static constexpr int kPairRows = kTile / kDown, kPairColumns = kTile / kAcross;
  // blocks of a multiprocessor that registers shall allow
  static constexpr int kBlocks = !is_half<Mul> || K == 256 ? 8 / kWarps : K == 32 ? 6 : 16 / kWarps;
  using Pairs = Sums<kPairRows / 16, kPairColumns / 8>;
};

// which tokens and columns are a block's; a grid has less than 2³¹ blocks, and so have heads, stretches and chunks
struct WalkPlace {
  int head, batch, inner, stretch, first_chunk, chunks, column;
  bool entered;  // whether a state enters the stretch
};

// one chunk of the walk
struct ChunkPlace {
  int64_t first;
  int rows;
  bool state, carry;  // whether a state comes in, and whether it goes on
};

// A tensor of which a block sees one head: the row of its first token, bytes from one to the next, and whether 16 bytes
// of rows can be moved at a time.
struct WalkTensor {
  const unsigned char* first;
  int64_t stride;
  bool vectorial;
};
constexpr int kWalkTensors = 5;

// Numbers of a block and of its chunk, most of them one per token. The places are kept here, too: registers are short.
struct ChunkNumbers {
  WalkPlace place;
  ChunkPlace chunk;
  WalkTensor tensors[kWalkTensors];
  const void* rows[kWalkTensors];  // where the chunk's begin
  float powers[kTile + 4];         // γ^0 … γ^64
  float weights[2 * kTile];        // of a pair, by row − column + 63; 0 for keys that another walk sees, or nobody
  float row_weight[kTile], row_coefficient[kTile], column_weight[kTile], column_coefficient[kTile];
  float fading[kTile];            // γ^(distance from the edge that the walk comes to); 0 where there is no token
  float companion_fading[kTile];  // the same for the companion of gradients, times what it sums up
  float pair_sums[2 * kTile];     // of a row of pairs, by halves
  float along_companion[kTile];   // φ(q)·(companion of the state)
  float companion[256];           // Σ φ, by columns
};

template <class In, int K>
struct WalkTiles {
  using Shape = WalkShape<In, K>;
  using Mul = typename Shape::Mul;
  // A warp's scratch: a piece of the state between two products of floats, 32 deep; or 16 × 16 results on their way
  // out, in rows that start at different banks.
  static constexpr int kDeep = kRowStride<Mul, Shape::kSlab>, kWide = kRowStride<Mul, Shape::kPart>,
                       kPairs = kRowStride<Mul, kTile>, kPiece = 32, kPieceRow = kRowStride<Mul, kPiece>,
                       kResultRow = 20;
  static constexpr size_t kSide = sizeof(Mul) * kTile * kDeep, kY = sizeof(Mul) * kTile * kWide,
                          kXs = sizeof(Mul) * kTile * kPairs,
                          kScratch = is_rounded<Mul> ? sizeof(float) * 16 * kResultRow : sizeof(Mul) * 16 * kPieceRow;
  static constexpr size_t kBytes = 2 * kSide + kY + kXs + Shape::kWarps * kScratch + sizeof(ChunkNumbers);

  unsigned char* memory;

  SOLA_DEVICE Mul* a() const { return reinterpret_cast<Mul*>(memory); }
  SOLA_DEVICE Mul* b() const { return reinterpret_cast<Mul*>(memory + kSide); }
  SOLA_DEVICE Mul* y() const { return reinterpret_cast<Mul*>(memory + 2 * kSide); }
  SOLA_DEVICE Mul* pairs() const { return reinterpret_cast<Mul*>(memory + 2 * kSide + kY); }
  template <class T>
  SOLA_DEVICE T* scratch() const {
    return reinterpret_cast<T*>(memory + 2 * kSide + kY + kXs + warp_of() * kScratch);
  }
  SOLA_DEVICE ChunkNumbers& numbers() const {
    return *reinterpret_cast<ChunkNumbers*>(memory + 2 * kSide + kY + kXs + Shape::kWarps * kScratch);
  }
  // the columns of y that this warp owns
  SOLA_DEVICE Operand<Mul> my_y() const { return {y() + 16 * warp_of(), kWide}; }
};

template <int part>
SOLA_DEVICE WalkPlace place_of_block(const WalkCall& call) {
  const int stretches = int(call.stretches), heads = int(call.heads), blocks = int(call.batches) * heads * stretches;
  const int block = int(blockIdx.x), index = block % blocks, head = index / stretches, stretch = index % stretches;
  const int per = int(call.per_stretch / kTile), all = int((call.tokens + kTile - 1) / kTile), first = stretch * per;
  return {head, head / heads, head % heads, stretch, first, min(per, all - first), block / blocks * part, false};
}

// `states`: whether stretches have any; the first one on the walk has none. One thread also says in `meet` where
// tensors lie.
template <int part, class F>
SOLA_DEVICE void find_place(ChunkNumbers& numbers, const WalkCall& call, bool states, const F& meet) {
  WalkPlace& place = numbers.place;
  if (threadIdx.x == 0) {
    place = place_of_block<part>(call);
    place.entered = states && (call.side == Side::left ? place.stretch > 0 : place.stretch < call.stretches - 1);
    for (WalkTensor& tensor : numbers.tensors) tensor = {};
    meet();
  }
  sync_block();
}

SOLA_DEVICE ChunkPlace chunk_place(const WalkCall& call, const WalkPlace& at, int step) {
  const int chunk = at.first_chunk + (call.side == Side::left ? step : at.chunks - 1 - step);
  const int64_t first = int64_t(chunk) * kTile;
  return {first, int(min(int64_t(kTile), call.tokens - first)), at.entered || step > 0, step + 1 < at.chunks};
}

// with which power of γ a row reads the state
SOLA_DEVICE int reads(const WalkCall& call, const ChunkPlace& chunk, int row) {
  return call.side == Side::left ? row + 1 : max(chunk.rows - row, 0);
}

// one thread says where tensors of `columns` columns lie: a tensor's index is what the other functions call it by
template <class In>
SOLA_DEVICE void meet_tensor(ChunkNumbers& numbers, int index, const View& view, int64_t columns) {
  const In* first = row_of<const In>(view, numbers.place.batch, 0, numbers.place.inner);
  numbers.tensors[index] = {reinterpret_cast<const unsigned char*>(first), view.token * int64_t(sizeof(In)),
                            is_vectorial(first, view.token, int(columns))};
}

template <class In>
SOLA_DEVICE Rows<const In> chunk_rows(const ChunkNumbers& numbers, int index, const View& view, int64_t columns) {
  return {static_cast<const In*>(global_pointer(numbers.rows[index])), view.token, numbers.chunk.rows, int(columns)};
}
// the same of the chunk after one that has such
template <class In>
SOLA_DEVICE Rows<const In> next_rows(const ChunkNumbers& numbers, const WalkCall& call, int index, const View& view,
                                     int64_t columns) {
  const int step = call.side == Side::left ? kTile : -kTile;
  const int64_t first = numbers.chunk.first + step;
  return {static_cast<const In*>(global_pointer(numbers.rows[index])) + step * view.token, view.token,
          int(min(int64_t(kTile), call.tokens - first)), int(columns)};
}

template <class T>
SOLA_DEVICE Rows<T> columns_of(Rows<T> rows, int first, int most) {
  return {rows.data + first, rows.stride, rows.rows, min(most, rows.columns - first)};
}

// `missing` where there is no array, 0 where there is no token
template <int kThreads>
SOLA_DEVICE void load_numbers(float* to, const float* from, const WalkCall& call, const WalkPlace& at,
                              const ChunkPlace& chunk, float missing) {
  for (int i = int(threadIdx.x); i < kTile; i += kThreads)
    to[i] = i >= chunk.rows ? 0.0f : from ? from[at.head * call.tokens + chunk.first + i] : missing;
}

// powers of γ, and the weights of pairs, times their distances where that is asked for
template <int kThreads>
SOLA_DEVICE void load_powers(ChunkNumbers& numbers, const WalkCall& call, const WalkPlace& at, bool with_distances) {
  const float logarithm = log_decay(call.decay, at.inner);
  for (int i = int(threadIdx.x); i <= kTile; i += kThreads) numbers.powers[i] = expf(logarithm * float(i));
  for (int i = int(threadIdx.x); i < 2 * kTile; i += kThreads) {
    const int distance = call.side == Side::left ? i - (kTile - 1) : kTile - 1 - i;
    const bool seen = distance > 0 || (distance == 0 && call.diagonal);
    const float weight = seen ? expf(logarithm * float(distance)) : 0.0f;
    numbers.weights[i] = with_distances ? float(distance) * weight : weight;
  }
}

// how far a token lies from the edge that the walk comes to
SOLA_DEVICE int edge_distance(const WalkCall& call, const ChunkPlace& chunk, int token) {
  return call.side == Side::left ? chunk.rows - 1 - token : token;
}

template <int kThreads>
SOLA_DEVICE void load_fading(ChunkNumbers& numbers, const WalkCall& call, const ChunkPlace& chunk) {
  for (int i = int(threadIdx.x); i < kTile; i += kThreads)
    numbers.fading[i] = i < chunk.rows ? numbers.powers[edge_distance(call, chunk, i)] : 0.0f;
}

// The block comes to the next chunk; load(chunk) brings what it needs to shared memory.
template <class F>
SOLA_DEVICE const ChunkPlace& come_to(ChunkNumbers& numbers, const WalkCall& call, int step, const F& load) {
  sync_block();
  const ChunkPlace here = chunk_place(call, numbers.place, step);
  if (threadIdx.x == 0) numbers.chunk = here;
  if (int(threadIdx.x) < kWalkTensors) {
    const WalkTensor& tensor = numbers.tensors[threadIdx.x];
    numbers.rows[threadIdx.x] = tensor.first + here.first * tensor.stride;
  }
  load(here);
  sync_block();
  return numbers.chunk;
}

// first row and column of this warp's pairs, anew where they are asked for: registers are short
template <class Shape>
SOLA_DEVICE int pair_row() {
  return int(anew(threadIdx.x) / kWarp % Shape::kDown) * Shape::kPairRows;
}
template <class Shape>
SOLA_DEVICE int pair_column() {
  return int(anew(threadIdx.x) / kWarp / Shape::kDown) * Shape::kPairColumns;
}

// pairs += a · bᵀ, over the columns that lie in shared memory
template <class In, int K>
SOLA_DEVICE void multiply_pairs(typename WalkShape<In, K>::Pairs& pairs, WalkTiles<In, K> tiles) {
  using Tiles = WalkTiles<In, K>;
  using Shape = typename Tiles::Shape;
  using Mul = typename Tiles::Mul;
  multiply<Along::depth, Along::depth>(pairs, Operand<Mul>{tiles.a() + pair_row<Shape>() * Tiles::kDeep, Tiles::kDeep},
                                       Operand<Mul>{tiles.b() + pair_column<Shape>() * Tiles::kDeep, Tiles::kDeep},
                                       Shape::kSlab);
}

// f(m, n, i, row, column, weight) for every pair of this lane
template <class Shape, class F>
SOLA_DEVICE void for_pairs(const ChunkNumbers& numbers, const F& f) {
  for_sums<Shape::kPairRows / 16, Shape::kPairColumns / 8>([&](int m, int n, int i, int r, int c) {
    const int row = pair_row<Shape>() + r, column = pair_column<Shape>() + c;
    f(m, n, i, row, column, numbers.weights[row - column + kTile - 1]);
  });
}

template <class In, int K>
SOLA_DEVICE void store_pairs(const typename WalkShape<In, K>::Pairs& pairs, WalkTiles<In, K> tiles) {
  using Tiles = WalkTiles<In, K>;
  using Shape = typename Tiles::Shape;
  store_sums(pairs, tiles.pairs() + pair_row<Shape>() * Tiles::kPairs + pair_column<Shape>(), Tiles::kPairs);
}

// out += pairs · y, for the rows from `row`
template <int MT, class In, int K>
SOLA_DEVICE void spread_pairs(Sums<MT, 2>& out, WalkTiles<In, K> tiles, int row) {
  using Tiles = WalkTiles<In, K>;
  using Mul = typename Tiles::Mul;
  multiply<Along::depth, Along::other>(out, Operand<Mul>{tiles.pairs() + row * Tiles::kPairs, Tiles::kPairs},
                                       tiles.my_y(), kTile);
}

// out += a · Z, for the columns from kFirst that lie in shared memory, and the rows from `row`
template <int kFirst, int MT, class In, int K>
SOLA_DEVICE void read_state(Sums<MT, 2>& out, const Sums<1, K / 8>& state, WalkTiles<In, K> tiles, int row) {
  using Tiles = WalkTiles<In, K>;
  using Shape = typename Tiles::Shape;
  using Mul = typename Tiles::Mul;
  const Operand<Mul> rows{tiles.a() + row * Tiles::kDeep, Tiles::kDeep};
  if constexpr (is_rounded<Mul>) {
#pragma unroll
    for (int k = 0; k < Shape::kSlab; k += kProductDepth<Mul>) {
      uint32_t b[4];
      right_fragments<Mul>(b, state, kFirst + k);
#pragma unroll
      for (int m = 0; m < MT; ++m) {
        uint32_t a[4];
        left_fragment<Along::depth>(a, rows, 16 * m, k);
        mma(out[m][0], a, b[0], b[1], Mul{});
        mma(out[m][1], a, b[2], b[3], Mul{});
      }
    }
  } else {
#pragma unroll
    for (int k = 0; k < Shape::kSlab; k += Tiles::kPiece) {
      const float (&piece)[1][Tiles::kPiece / 8][4] =
          *reinterpret_cast<const float (*)[1][Tiles::kPiece / 8][4]>(&state[0][(kFirst + k) / 8]);
      sync_warp();
      store_sums(piece, tiles.template scratch<Mul>(), Tiles::kPieceRow);
      sync_warp();
      multiply<Along::depth, Along::depth>(out, Operand<Mul>{rows.data + k, rows.stride},
                                           Operand<Mul>{tiles.template scratch<Mul>(), Tiles::kPieceRow},
                                           Tiles::kPiece);
    }
  }
}

// Z ← factor · Z + Σ fading_j b_jᵀ y_j, for the same columns
template <int kFirst, class In, int K>
SOLA_DEVICE void carry_state(Sums<1, K / 8>& state, WalkTiles<In, K> tiles, float factor, const float* fading) {
  using Tiles = WalkTiles<In, K>;
  using Shape = typename Tiles::Shape;
  using Mul = typename Tiles::Mul;
  auto& slab = *reinterpret_cast<Sums<1, Shape::kSlab / 8>*>(&state[0][kFirst / 8]);
#pragma unroll
  for (int n = 0; n < Shape::kSlab / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) slab[0][n][i] *= factor;
  multiply<Along::other, Along::other>(slab, tiles.my_y(), Operand<Mul>{tiles.b(), Tiles::kDeep}, kTile,
                                       [&](int token) { return fading[token]; });
}

// Σ weight_j x_j over the tokens of a tile in shared memory: f(column, its sum and the next one's), by one lane each.
// Eight lanes share a column, so that what they read lies in different banks.
template <int kThreads, int kColumns, class Mul, class F>
SOLA_DEVICE void for_column_sums(Operand<Mul> x, const float* weights, const F& f) {
  const int group = lane_of() / 4;
#pragma unroll 1
  for (int pair = 4 * warp_of() + lane_of() % 4; pair < kColumns / 2; pair += kThreads / 8) {
    float sums[2] = {};
#pragma unroll
    for (int token = group; token < kTile; token += 8) {
      float two[2];
      load_two(x.data + token * x.stride + 2 * pair, two);
      sums[0] = fmaf(weights[token], two[0], sums[0]);
      sums[1] = fmaf(weights[token], two[1], sums[1]);
    }
#pragma unroll
    for (int lanes = 4; lanes < kWarp; lanes *= 2) {
      sums[0] += shuffle_xor(sums[0], lanes);
      sums[1] += shuffle_xor(sums[1], lanes);
    }
    if (group == 0) f(2 * pair, sums);
  }
}

// x_row · y over kColumns columns, y a vector; a row belongs to kThreads / 64 neighbouring lanes, and all get the sum
template <int kThreads, int kColumns, class Mul>
SOLA_DEVICE float row_product(Operand<Mul> x, const float* y) {
  constexpr int kPerRow = kThreads / kTile;
  const Mul* row = x.data + int(threadIdx.x) / kPerRow * x.stride;
  float sum = 0.0f;
#pragma unroll 8
  for (int i = 2 * (int(threadIdx.x) % kPerRow); i < kColumns; i += 2 * kPerRow) {
    float two[2];
    load_two(row + i, two);
    sum = fmaf(two[0], y[i], fmaf(two[1], y[i + 1], sum));
  }
#pragma unroll
  for (int lanes = kPerRow / 2; lanes > 0; lanes /= 2) sum += shuffle_xor(sum, lanes);
  return sum;
}

// the first of the part's eight columns whose results a lane gets
SOLA_DEVICE int result_column() {
  const unsigned thread = anew(threadIdx.x);
  return int(thread / kWarp * 16 + thread % 2 * 8);
}

// Gives a warp's share of the result, rows from `first`, to f(row, column, numbers): eight neighbours, of the part's
// columns from `column`.
template <int MT, class In, int K, class F>
SOLA_DEVICE void for_results(const Sums<MT, 2>& out, WalkTiles<In, K> tiles, int first, const F& f) {
  constexpr int kStride = WalkTiles<In, K>::kResultRow;
  static_assert(sizeof(float) * 16 * kStride <= WalkTiles<In, K>::kScratch);
  float* staging = tiles.template scratch<float>();
  const int row = lane_of() / 2, column = lane_of() % 2 * 8;
#pragma unroll
  for (int m = 0; m < MT; ++m) {
    sync_warp();
    store_sums<1, 2>(reinterpret_cast<const Sums<1, 2>&>(out[m]), staging, kStride);
    sync_warp();
    float numbers[8];
    load_eight(staging + row * kStride + column, 8, true, numbers);
    f(first + 16 * m + row, result_column(), numbers);
  }
  // lanes may have parted over rows that don't exist, and products follow
  sync_warp();
}

}  // namespace sola::cuda
