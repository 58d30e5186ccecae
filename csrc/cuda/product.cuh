// products of tiles in shared memory, one warp at a time
//
// A warp owns 16·MT rows and 8·NT columns of the result; lane l holds, of every 16 × 8 block, rows l/4 and l/4 + 8 and
// columns 2·(l%4) and the next: entries 0 and 1 of the first row, 2 and 3 of the second. Half types are multiplied by
// tensor cores, 16 deep, and Tf32, 8 deep; float by plain multiply-adds in true float32, in the same places.
#pragma once

#include <type_traits>

#include "cuda/numbers.cuh"

namespace sola::cuda {

// f(m, n, i, row, column) for every number that this lane holds
template <int MT, int NT, class F>
SOLA_DEVICE void for_sums(const F& f) {
  const int g = int(threadIdx.x) % kWarp / 4, t = int(threadIdx.x) % 4;
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) f(m, n, i, 16 * m + g + i / 2 * 8, 8 * n + 2 * t + i % 2);
}

// how an operand lies in shared memory: with its depth (the summed index) along rows or across them
enum class Along { depth, other };

// distance of rows in a tile: 16 bytes more than the columns, so that the eight rows of an ldmatrix touch all banks
template <class Mul, int columns>
constexpr int kRowStride = columns + kVector<Mul>;

template <class Mul>
struct Operand {
  const Mul* data;
  int stride;
};

template <int MT, int NT>
using Sums = float[MT][NT][4];

template <int MT, int NT>
SOLA_DEVICE void clear(Sums<MT, NT>& sums) {
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[m][n][i] = 0.0f;
}

// a warp's sums into rows of shared memory, two neighbours at a time
template <int MT, int NT, class T>
SOLA_DEVICE void store_sums(const Sums<MT, NT>& sums, T* to, int stride) {
  const int g = int(threadIdx.x) % kWarp / 4, t = int(threadIdx.x) % 4;
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        T* at = to + (16 * m + g + 8 * half) * stride + 8 * n + 2 * t;
        const float x = sums[m][n][2 * half], y = sums[m][n][2 * half + 1];
        if constexpr (is_half<T>) {
          *reinterpret_cast<uint32_t*>(at) = pack<T>(x, y);
        } else {
          at[0] = from_float<T>(x);
          at[1] = from_float<T>(y);
        }
      }
}

SOLA_DEVICE int lane_of() { return int(threadIdx.x) % kWarp; }
SOLA_DEVICE int warp_of() { return int(threadIdx.x) / kWarp; }

// how deep a product of tensor cores is
template <class Mul>
constexpr int kProductDepth = 32 / int(sizeof(Mul));

// Of a row (or column) of a Tf32 operand what a lane has at depth k. Tensor cores take the numbers in any order, if it
// is the same for both operands. Where they are neighbours, 2t and 2t + 1, sums are right operands as they lie, and
// rows that are read across lie in different banks. Two operands that are both read along their rows have them `apart`,
// t and t + 4: eight rows then touch all banks.
struct alignas(8) TwoDeep {
  uint32_t first, second;
};
template <Along along, bool apart>
SOLA_DEVICE TwoDeep two_deep(Operand<Tf32> operand, int other, int k) {
  const int t = lane_of() % 4, depth = k + (apart ? t : 2 * t);
  if constexpr (along == Along::depth && !apart) {
    return *reinterpret_cast<const TwoDeep*>(operand.data + other * operand.stride + depth);
  } else {
    const int one = along == Along::depth ? 1 : operand.stride, row = along == Along::depth ? operand.stride : 1;
    const Tf32* at = operand.data + depth * one + other * row;
    return {float_to_bits(at[0].value), float_to_bits(at[apart ? 4 * one : one].value)};
  }
}

// from the first number of an operand to that of a row (or column) at depth k, in bytes: what is known when the kernel
// is compiled and what a lane adds are kept apart, so that fragments differ by constants
template <Along along, class Mul>
SOLA_DEVICE int bytes_to(Operand<Mul> operand, int other, int k) {
  return int(sizeof(Mul)) * (along == Along::depth ? other * operand.stride + k : k * operand.stride + other);
}
template <Along along, class Mul>
SOLA_DEVICE void load_fragment(uint32_t (&r)[4], Operand<Mul> operand, int bytes, int lane_bytes) {
  const SharedPlace place = shared_place(operand.data) + lane_bytes + bytes;
  if constexpr (along == Along::depth) {
    load_matrices(r, place);
  } else {
    load_matrices_transposed(r, place);
  }
}

// the block of 16 rows of the left operand at depth k, of kProductDepth
template <Along along, bool apart = false, class Mul>
SOLA_DEVICE void left_fragment(uint32_t (&a)[4], Operand<Mul> left, int row, int k) {
  const int lane = lane_of();
  if constexpr (std::is_same_v<Mul, Tf32>) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const TwoDeep two = two_deep<along, apart>(left, row + lane / 4 + 8 * half, k);
      a[half] = two.first;
      a[half + 2] = two.second;
    }
  } else {
    const int across = along == Along::depth ? lane % 16 : lane / 8 % 2 * 8;
    const int deep = along == Along::depth ? lane / 16 * 8 : lane % 8 + lane / 16 * 8;
    load_fragment<along>(a, left, bytes_to<along>(left, row, k), bytes_to<along>(left, across, deep));
  }
}

// two blocks of 8 columns of the right operand at depth k: words 0, 1 and 2, 3
template <Along along, bool apart = false, class Mul>
SOLA_DEVICE void right_fragments(uint32_t (&b)[4], Operand<Mul> right, int column, int k) {
  const int lane = lane_of();
  if constexpr (std::is_same_v<Mul, Tf32>) {
#pragma unroll
    for (int block = 0; block < 2; ++block) {
      const TwoDeep two = two_deep<along, apart>(right, column + lane / 4 + 8 * block, k);
      b[2 * block] = two.first;
      b[2 * block + 1] = two.second;
    }
  } else {
    const int across = along == Along::depth ? lane / 16 * 8 + lane % 8 : lane / 16 * 8;
    const int deep = along == Along::depth ? lane / 8 % 2 * 8 : lane % 16;
    load_fragment<along>(b, right, bytes_to<along>(right, column, k), bytes_to<along>(right, across, deep));
  }
}

// the same blocks out of sums that lie transposed: rows of the sums are columns of the operand
template <class Mul, int NT>
SOLA_DEVICE void right_fragments(uint32_t (&b)[4], const Sums<1, NT>& sums, int k) {
  const float (&low)[4] = sums[0][k / 8];
  if constexpr (std::is_same_v<Mul, Tf32>) {
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i] = float_to_bits(round_tf32(low[i]));
  } else {
    const float (&high)[4] = sums[0][k / 8 + 1];
    b[0] = pack<Mul>(low[0], low[1]);
    b[1] = pack<Mul>(high[0], high[1]);
    b[2] = pack<Mul>(low[2], low[3]);
    b[3] = pack<Mul>(high[2], high[3]);
  }
}

template <Along along, class Mul>
SOLA_DEVICE Mul element(Operand<Mul> operand, int other, int k) {
  return along == Along::depth ? operand.data[other * operand.stride + k] : operand.data[k * operand.stride + other];
}

// stands for no weights on the left operand; otherwise a function of the depth
struct Unweighted {
  SOLA_DEVICE float operator()(int) const { return 1.0f; }
};
template <class Weights>
constexpr bool is_weighted = !std::is_same_v<Weights, Unweighted>;

// two neighbours along the depth, rounded after they have been weighted
template <class Mul>
SOLA_DEVICE uint32_t weigh(uint32_t word, float low, float high) {
  return pack<Mul>(to_float(Mul{uint16_t(word)}) * low, to_float(Mul{uint16_t(word >> 16)}) * high);
}

template <class Mul, class Weights>
SOLA_DEVICE void weigh_fragment(uint32_t (&a)[4], int k, const Weights& weights) {
  const int first = k + lane_of() % 4 * 2;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (std::is_same_v<Mul, Tf32>) {
      a[i] = float_to_bits(round_tf32(bits_to_float(a[i]) * weights(first + i / 2)));
    } else {
      a[i] = weigh<Mul>(a[i], weights(first + i / 2 * 8), weights(first + i / 2 * 8 + 1));
    }
  }
}

template <int MT, int NT, Along la, Along ra, class Mul, class Weights>
SOLA_DEVICE void multiply_rounded(Sums<MT, NT>& sums, Operand<Mul> left, Operand<Mul> right, int depth,
                                  const Weights& weights) {
  constexpr bool apart = la == Along::depth && ra == Along::depth;
  static_assert(NT % 2 == 0 && !(apart && is_weighted<Weights>));
#pragma unroll(MT* NT > 8 ? 1 : 2)
  for (int k = 0; k < depth; k += kProductDepth<Mul>) {
    uint32_t a[MT][4];
#pragma unroll
    for (int m = 0; m < MT; ++m) {
      left_fragment<la, apart>(a[m], left, 16 * m, k);
      if constexpr (is_weighted<Weights>) weigh_fragment<Mul>(a[m], k, weights);
    }
#pragma unroll
    for (int n = 0; n < NT; n += 2) {
      uint32_t b[4];
      right_fragments<ra, apart>(b, right, 8 * n, k);
#pragma unroll
      for (int m = 0; m < MT; ++m) {
        mma(sums[m][n], a[m], b[0], b[1], Mul{});
        mma(sums[m][n + 1], a[m], b[2], b[3], Mul{});
      }
    }
  }
}

template <int MT, int NT, Along la, Along ra, class Weights>
SOLA_DEVICE void multiply_float(Sums<MT, NT>& sums, Operand<float> left, Operand<float> right, int depth,
                                const Weights& weights) {
  const int g = int(threadIdx.x) % kWarp / 4, t = int(threadIdx.x) % 4;
#pragma unroll(MT* NT > 16 ? 1 : MT * NT >= 8 ? 2 : 4)
  for (int k = 0; k < depth; ++k) {
    float a[MT][2];
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) a[m][i] = weights(k) * element<la>(left, 16 * m + g + 8 * i, k);
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      const float b0 = element<ra>(right, 8 * n + 2 * t, k), b1 = element<ra>(right, 8 * n + 2 * t + 1, k);
#pragma unroll
      for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          sums[m][n][2 * i] = fmaf(a[m][i], b0, sums[m][n][2 * i]);
          sums[m][n][2 * i + 1] = fmaf(a[m][i], b1, sums[m][n][2 * i + 1]);
        }
    }
  }
}

// sums += left · right; `la` and `ra` say along which index each operand's rows lie. Operands start at the warp's first
// row and column; depth is a multiple of 16. `weights` multiply the left operand along the depth.
template <Along la, Along ra, int MT, int NT, class Mul, class Weights = Unweighted>
SOLA_DEVICE void multiply(Sums<MT, NT>& sums, Operand<Mul> left, Operand<Mul> right, int depth,
                          const Weights& weights = {}) {
  if constexpr (is_rounded<Mul>) {
    multiply_rounded<MT, NT, la, ra>(sums, left, right, depth, weights);
  } else {
    multiply_float<MT, NT, la, ra>(sums, left, right, depth, weights);
  }
}

// sums += left · right, with the left operand in registers as another product left it. Half types pack it as it is;
// float goes through `scratch`, 16 rows of the warp's own in shared memory.
template <Along ra, int MT, int KT, int NT, class Mul>
SOLA_DEVICE void multiply_sums(Sums<MT, NT>& sums, const Sums<MT, KT>& left, Operand<Mul> right, Operand<Mul> scratch) {
  if constexpr (is_half<Mul>) {
#pragma unroll
    for (int k = 0; k < KT; k += 2) {
      uint32_t a[MT][4];
#pragma unroll
      for (int m = 0; m < MT; ++m) {
        const float (&low)[4] = left[m][k];
        const float (&high)[4] = left[m][k + 1];
        a[m][0] = pack<Mul>(low[0], low[1]);
        a[m][1] = pack<Mul>(low[2], low[3]);
        a[m][2] = pack<Mul>(high[0], high[1]);
        a[m][3] = pack<Mul>(high[2], high[3]);
      }
#pragma unroll
      for (int n = 0; n < NT; n += 2) {
        uint32_t b[4];
        right_fragments<ra>(b, right, 8 * n, 8 * k);
#pragma unroll
        for (int m = 0; m < MT; ++m) {
          mma(sums[m][n], a[m], b[0], b[1], Mul{});
          mma(sums[m][n + 1], a[m], b[2], b[3], Mul{});
        }
      }
    }
  } else {
    static_assert(MT == 1);
    Mul* rows = const_cast<Mul*>(scratch.data);
    sync_warp();
    store_sums(left, rows, scratch.stride);
    sync_warp();
    multiply<Along::depth, ra>(sums, scratch, right, 8 * KT);
  }
}

}  // namespace sola::cuda
