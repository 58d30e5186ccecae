// rows of tokens in registers, multiplied by one state in shared memory
//
// A warp holds 16 rows as sums lie (product.cuh), with columns in another order: what is column 8n + 2t + i of sums is
// column 32⌊n/4⌋ + 8t + 2(n mod 4) + i of the tensor. So a lane has eight neighbours of a row, which it reads and
// writes as vectors of 16 bytes, and no row passes through shared memory on its way. The state lies there in the same
// order.
#pragma once

#include "cuda/kernel_params.h"
#include "cuda/tokens.cuh"

namespace sola::cuda {

constexpr int kWarpRows = 16;
static_assert(kWarpRows * kThreads / kWarp == kTile);

// the column of a tensor that lies at a place of sums
SOLA_DEVICE int column_at(int place) { return place / 32 * 32 + place % 8 / 2 * 8 + place % 32 / 8 * 2 + place % 2; }

// f(half, group) for every eight neighbours of a lane: columns 32·group + 8t to 32·group + 8t + 7 of row g + 8·half, or
// numbers 2·half and 2·half + 1 of blocks 4·group to 4·group + 3 of sums
template <int T, class F>
SOLA_DEVICE void for_neighbours(const F& f) {
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int group = 0; group < T / 32; ++group) f(half, group);
}
SOLA_DEVICE int neighbour_row(int half) { return lane_of() / 4 + 8 * half; }
SOLA_DEVICE int neighbour_column(int group) { return 32 * group + lane_of() % 4 * 8; }

// where a lane's neighbours of group 0 lie in its two rows, and how many columns there are from there on; none of a row
// that doesn't exist
template <class T>
struct OwnRows {
  T* data[2];
  int left[2];

  // 16 tokens from `first` on
  SOLA_DEVICE OwnRows(const HeadRows<T>& of, int64_t first) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t token = first + neighbour_row(half);
      data[half] = of.at(token) + neighbour_column(0);
      left[half] = token < of.tokens ? of.columns - neighbour_column(0) : 0;
    }
  }
};

// 16 rows as they came from memory; zeros where there is nothing
template <class In, int T>
struct RawRows {
  static constexpr int kWide = kVector<In>, kVectors = 8 / kWide;
  Vec4 raw[2][T / 32][kVectors];

  // of the tokens from `first` on
  SOLA_DEVICE void load(const HeadRows<const In>& from, int64_t first) {
    const OwnRows<const In> own(from, first);
    from.with_vectorial([&](auto vectorial) {
      for_neighbours<T>([&](int half, int group) {
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
          const int column = 32 * group + v * kWide;
          raw[half][group][v] = load_raw(own.data[half] + column, own.left[half] - column, decltype(vectorial)::value);
        }
      });
    });
  }

  SOLA_DEVICE void neighbours(int half, int group, float (&to)[8]) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      float x[kWide];
      unpack<In>(raw[half][group][v], x);
#pragma unroll
      for (int j = 0; j < kWide; ++j) to[v * kWide + j] = x[j];
    }
  }
};

// eight neighbours out of sums
template <int NT>
SOLA_DEVICE void take(const Sums<1, NT>& sums, int half, int group, float (&to)[8]) {
#pragma unroll
  for (int j = 0; j < 8; ++j) to[j] = sums[0][4 * group + j / 2][2 * half + j % 2];
}

// f(half, group, x) makes eight neighbours of 16 rows, which go to the tokens from `first` on, columns from
// `first_column` on
template <int T, class In, class F>
SOLA_DEVICE void store_rows(const HeadRows<In>& to, int64_t first, int first_column, const F& f) {
  const OwnRows<In> own(to, first);
  for_neighbours<T>([&](int half, int group) {
    float x[8];
    f(half, group, x);
    const int column = first_column + 32 * group;
    store_eight(x, own.data[half] + column, own.left[half] - column, to.vectorial);
  });
}

// 16 rows as the left operand of a product: words for tensor cores, numbers in the warp's part of shared memory
// otherwise
template <class Mul, int T>
struct LeftRows {
  static constexpr int kStride = kRowStride<Mul, T>;
  Mul* scratch;
  uint32_t word[is_rounded<Mul> ? T / kProductDepth<Mul> : 1][4];

  SOLA_DEVICE explicit LeftRows(Mul* memory) : scratch(memory) {}

  // x becomes what will be multiplied
  SOLA_DEVICE void set(float (&x)[8], int half, int group) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if constexpr (is_half<Mul>) {
        const uint32_t two = pack<Mul>(x[2 * j], x[2 * j + 1]);
        word[2 * group + j / 2][j % 2 * 2 + half] = two;
        x[2 * j] = to_float(Mul{uint16_t(two)});
        x[2 * j + 1] = to_float(Mul{uint16_t(two >> 16)});
      } else if constexpr (is_rounded<Mul>) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          x[2 * j + i] = to_float(from_float<Mul>(x[2 * j + i]));
          word[4 * group + j][2 * i + half] = float_to_bits(x[2 * j + i]);
        }
      } else {
        Mul* to = scratch + neighbour_row(half) * kStride + 32 * group + 8 * j + lane_of() % 4 * 2;
        to[0] = from_float<Mul>(x[2 * j]);
        to[1] = from_float<Mul>(x[2 * j + 1]);
      }
    }
  }

  // rows as they are
  template <class In>
  SOLA_DEVICE void set(const RawRows<In, T>& rows) {
    for_neighbours<T>([&](int half, int group) {
      if constexpr (is_half<Mul>) {
#pragma unroll
        for (int j = 0; j < 4; ++j) word[2 * group + j / 2][j % 2 * 2 + half] = rows.raw[half][group][0].word[j];
      } else {
        float x[8];
        rows.neighbours(half, group, x);
        set(x, half, group);
      }
    });
  }
};

// sums += left · state (along = other: the state's rows are the depth) or left · stateᵀ (along = depth)
template <Along along, class Mul, int T, int NT>
SOLA_DEVICE void multiply_rows(Sums<1, NT>& sums, const LeftRows<Mul, T>& left, Operand<Mul> state) {
  if constexpr (is_rounded<Mul>) {
    // lanes may have parted over rows that don't exist
    sync_warp();
#pragma unroll
    for (int k = 0; k < T / kProductDepth<Mul>; ++k) {
#pragma unroll
      for (int n = 0; n < NT; n += 2) {
        uint32_t b[4];
        right_fragments<along>(b, state, 8 * n, kProductDepth<Mul> * k);
        mma(sums[0][n], left.word[k], b[0], b[1], Mul{});
        mma(sums[0][n + 1], left.word[k], b[2], b[3], Mul{});
      }
    }
  } else {
    sync_warp();
    multiply<Along::depth, along>(sums, Operand<Mul>{left.scratch, LeftRows<Mul, T>::kStride}, state, T);
    sync_warp();
  }
}

// columns of a product that a warp computes at a time, where registers hold the left operand too
template <int T>
constexpr int kPart = T > 64 ? 64 : T;

// the same product as f(sums, group) wants it: part by part, from the 32 columns of `group` on
template <Along along, class Mul, int T, class F>
SOLA_DEVICE void multiply_parts(const LeftRows<Mul, T>& left, Operand<Mul> state, const F& f) {
#pragma unroll
  for (int column = 0; column < T; column += kPart<T>) {
    float sums[1][kPart<T> / 8][4];
    clear(sums);
    multiply_rows<along>(sums, left,
                         Operand<Mul>{state.data + column * (along == Along::other ? 1 : state.stride), state.stride});
    f(sums, column / 32);
  }
}

// (S, z) of a head in shared memory, in the type that is multiplied, beside the left operands of warps that need one.
// The padding of rows that tensor cores multiply can hold z, too, as a sum of numbers of that type.
template <class In, int T>
struct StateMemory {
  using Mul = typename WideRange<In>::Mul;
  static constexpr int kStride = kRowStride<Mul, T>;
  static constexpr size_t kScratch = is_rounded<Mul> ? 0 : sizeof(Mul) * kWarpRows * kStride;
  static constexpr size_t kBytes = sizeof(Mul) * T * kStride + sizeof(float) * T + kScratch * (kThreads / kWarp);

  unsigned char* memory;

  SOLA_DEVICE Mul* numbers() const { return reinterpret_cast<Mul*>(memory); }
  SOLA_DEVICE float* companion() const { return reinterpret_cast<float*>(numbers() + T * kStride); }
  SOLA_DEVICE Operand<Mul> state() const { return {numbers(), kStride}; }
  SOLA_DEVICE Mul* scratch() const {
    return reinterpret_cast<Mul*>(reinterpret_cast<unsigned char*>(companion() + T) + warp_of() * kScratch);
  }

  // a missing companion is 0
  SOLA_DEVICE void load(const float* state, const float* sums, int D, int V) const {
    constexpr int kWide = kVector<Mul>, kAcross = T / kWide;
#pragma unroll 4
    for (int i = int(threadIdx.x); i < T * kAcross; i += kThreads) {
      const int row = i / kAcross, place = i % kAcross * kWide, d = column_at(row), first = column_at(place);
      const float* from = state + d * V + first;
      const int left = d < D ? V - first : 0;
      // what lies side by side here are pairs that are eight columns apart there
      float x[kWide];
#pragma unroll
      for (int j = 0; j < kWide; ++j) {
        const int column = j / 2 * 8 + j % 2;
        x[j] = column < left ? from[column] : 0.0f;
      }
      store_vector<Mul>(x, numbers() + row * kStride + place);
    }
    for (int i = int(threadIdx.x); i < T; i += kThreads) companion()[i] = sums && i < D ? sums[i] : 0.0f;
  }

  // puts z beside S, for products with it
  SOLA_DEVICE void spread_companion() const {
    static_assert(is_rounded<Mul>);
    for (int i = int(threadIdx.x); i < T; i += kThreads)
      store_parts(companion()[column_at(i)], numbers() + i * kStride + T);
    sync_block();
  }

  // φ·z of the lane's two rows
  SOLA_DEVICE void multiply_companion(const LeftRows<Mul, T>& left, float (&along)[2]) const {
    static_assert(is_rounded<Mul>);
    float sums[4] = {};
    sync_warp();
#pragma unroll
    for (int k = 0; k < T / kProductDepth<Mul>; ++k) {
      uint32_t b[4];
      // columns behind the padding come along, which nobody looks at
      right_fragments<Along::other>(b, Operand<Mul>{numbers() + T, kStride}, 0, kProductDepth<Mul> * k);
      mma(sums, left.word[k], b[0], b[1], Mul{});
    }
    static_assert(kParts<Mul> == 3);
    const int t = lane_of() % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float first = sums[2 * half], second = sums[2 * half + 1];
      along[half] = quad_sum(t == 0 ? first + second : t == 1 ? first : 0.0f);
    }
  }

  // z beside eight neighbours
  SOLA_DEVICE void companions(int group, float (&z)[8]) const {
    const float* from = companion() + neighbour_column(group);
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      float part[4];
      unpack<float>(load_vec4(from + 4 * v), part);
#pragma unroll
      for (int j = 0; j < 4; ++j) z[4 * v + j] = part[j];
    }
  }
};

}  // namespace sola::cuda
