// moving tiles between global and shared memory, feature maps on the way
#pragma once

#include "cuda/divisor.h"
#include "cuda/product.cuh"

namespace sola::cuda {

// n / d.by
SOLA_DEVICE unsigned short_quotient(unsigned n, const Divisor& d) {
  return (unsigned(uint64_t(n) * d.factor >> 32) + n) >> d.shift;
}
SOLA_DEVICE int64_t quotient(int64_t n, const Divisor& d) {
  return n < d.limit ? int64_t(short_quotient(unsigned(n), d)) : n / d.by;
}

constexpr int kThreads = 128;  // four warps
constexpr float kLog2e = 1.4426950408889634f;

// φ(x), padding aside; comparisons are written so that NaN stays NaN. kRough: the result will be rounded to 16 bits
template <bool kRough>
SOLA_DEVICE float exponential(float x) {
  return kRough ? fast_exp2(x * kLog2e) : expf(x);
}
template <bool kRough>
SOLA_DEVICE float elu1(float x) {
  return x > 0.0f ? x + 1.0f : exponential<kRough>(x);
}
template <bool kRough>
SOLA_DEVICE float feature(FeatureMap map, float x) {
  switch (map) {
    case FeatureMap::elu1:
      return elu1<kRough>(x);
    case FeatureMap::relu:
      return x < 0.0f ? 0.0f : x;
    case FeatureMap::exp:
      return exponential<kRough>(x);
    default:
      return x;
  }
}

// the same of several numbers at once, for load_tile: one decision for all of them
template <bool kRough>
struct Features {
  FeatureMap map;

  template <int count>
  SOLA_DEVICE void operator()(int, float (&x)[count]) const {
    if (map == FeatureMap::elu1) {
#pragma unroll
      for (int i = 0; i < count; ++i) x[i] = elu1<kRough>(x[i]);
    } else if (map == FeatureMap::exp) {
#pragma unroll
      for (int i = 0; i < count; ++i) x[i] = exponential<kRough>(x[i]);
    } else if (map == FeatureMap::relu) {
#pragma unroll
      for (int i = 0; i < count; ++i) x[i] = x[i] < 0.0f ? 0.0f : x[i];
    }
  }
};

// φ′(x) as a function of φ(x): ELU + 1 exceeds 1 exactly where its slope is 1
SOLA_DEVICE float feature_slope(FeatureMap map, float phi) {
  switch (map) {
    case FeatureMap::elu1:
      return phi > 1.0f ? 1.0f : phi;
    case FeatureMap::relu:
      return phi > 0.0f ? 1.0f : 0.0f;
    case FeatureMap::exp:
      return phi;
    default:
      return 1.0f;
  }
}

// numbers times φ′ of those that φ maps to phi: one decision for all of them
template <int count>
SOLA_DEVICE void multiply_slopes(FeatureMap map, const float (&phi)[count], float (&numbers)[count]) {
  const auto with = [&](auto constant) {
#pragma unroll
    for (int i = 0; i < count; ++i) numbers[i] *= feature_slope(decltype(constant)::value, phi[i]);
  };
  if (map == FeatureMap::elu1) {
    with(std::integral_constant<FeatureMap, FeatureMap::elu1>{});
  } else if (map == FeatureMap::relu) {
    with(std::integral_constant<FeatureMap, FeatureMap::relu>{});
  } else if (map == FeatureMap::exp) {
    with(std::integral_constant<FeatureMap, FeatureMap::exp>{});
  }
}

// natural logarithm; a decay outside (0, 1] gives NaN, since nobody can look at it without waiting for the device
SOLA_DEVICE float log_decay(const float* decay, int64_t head) {
  if (!decay) return 0.0f;
  return decay[head] > 0.0f && decay[head] <= 1.0f ? logf(decay[head]) : NAN;
}

// what is multiplied: float16 inputs go as TF32 where sums over many tokens or quotients by them become operands. It
// has float16's precision and float's range, so that inputs stay as they are and nothing overflows at any number of
// tokens
template <class In>
struct WideRange {
  using Mul = In;
};
template <>
struct WideRange<Half> {
  using Mul = Tf32;
};

// rows of a tile as the host describes them: `rows` and `columns` that exist, `stride` between rows
template <class T>
struct Rows {
  T* data;
  int64_t stride;
  int rows, columns;
};

// 16 bytes of a row as they lie in memory, zeros where there is nothing; `valid` of their numbers exist
template <class In>
SOLA_DEVICE Vec4 load_raw(const In* from, int valid, bool vectorial) {
  constexpr int kWide = kVector<In>, kPerWord = kWide / 4;
  Vec4 raw{};
  if (vectorial) {
    if (valid > 0) raw = load_vec4(from);
    return raw;
  }
#pragma unroll
  for (int j = 0; j < kWide; ++j) {
    if (j < valid) raw.word[j / kPerWord] |= raw_bits(from[j]) << (32 / kPerWord * (j % kPerWord));
  }
  return raw;
}

// eight neighbours of a row, zeros where there is nothing
template <class In>
SOLA_DEVICE void load_eight(const In* from, int valid, bool vectorial, float (&to)[8]) {
  constexpr int kWide = kVector<In>;
#pragma unroll
  for (int i = 0; i < 8; i += kWide) {
    float x[kWide];
    unpack<In>(load_raw(from + i, valid - i, vectorial), x);
#pragma unroll
    for (int j = 0; j < kWide; ++j) to[i + j] = x[j];
  }
}

template <class Out>
SOLA_DEVICE void store_eight(const float (&from)[8], Out* to, int valid, bool vectorial) {
  if (vectorial && valid >= 8) {
    write_vector(from, to);
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i < valid) to[i] = from_float<Out>(from[i]);
  }
}

// neighbours of a row of a tile, changed by a function of one of them or of all
template <class F, int count>
SOLA_DEVICE void change_numbers(const F& f, int row, float (&x)[count]) {
  if constexpr (std::is_invocable_v<F, int, float>) {
#pragma unroll
    for (int j = 0; j < count; ++j) x[j] = f(row, x[j]);
  } else {
    f(row, x);
  }
}

// A share of load_tile's numbers, `kAhead` times 16 bytes at once; `kVectorial`: all rows can be read so.
template <bool kVectorial, int kRows, int kColumns, int kThreads, int kAhead, class In, class Mul, class F>
SOLA_DEVICE void load_share(Rows<const In> from, Mul* to, int stride, const F& f, int begin) {
  constexpr int kWide = kVector<In>, kAcross = kColumns / kWide, kAll = kRows * kAcross;
  const auto valid = [&](int i) {
    const int column = i % kAcross * kWide;
    return i / kAcross < from.rows ? min(kWide, max(0, from.columns - column)) : 0;
  };
  Vec4 raw[kAhead];
#pragma unroll
  for (int n = 0; n < kAhead; ++n) {
    const int i = begin + n * kThreads;
    raw[n] = load_raw(from.data + i / kAcross * from.stride + i % kAcross * kWide, valid(i), kVectorial);
  }
#pragma unroll
  for (int n = 0; n < kAhead; ++n) {
    const int i = begin + n * kThreads, row = i / kAcross, count = valid(i);
    if (kAll % (kAhead * kThreads) != 0 && i >= kAll) break;
    float x[kWide];
    unpack<In>(raw[n], x);
    change_numbers(f, row, x);
    if (count < kWide) {
#pragma unroll
      for (int j = 0; j < kWide; ++j) x[j] = !kVectorial && j < count ? x[j] : 0.0f;
    }
    store_vector<Mul>(x, to + row * stride + i % kAcross * kWide);
  }
}

// load_tile of rows of any alignment
template <int kRows, int kColumns, int kThreads, class In, class Mul, class F>
SOLA_DEVICE void load_singly(Rows<const In> from, Mul* to, int stride, const F& f) {
#pragma unroll 1
  for (int i = int(threadIdx.x); i < kRows * kColumns / kVector<In>; i += kThreads)
    load_share<false, kRows, kColumns, kThreads, 1>(from, to, stride, f, i);
}

// `kRows` × `kColumns` into shared memory, zeros where there is nothing. On the way f changes them: f(row, number)
// gives the number that is kept, f(row, numbers) changes neighbours in place. Several loads are on their way before the
// first is needed.
template <int kRows, int kColumns, int kThreads, int kMostAhead = 4, class In, class Mul, class F>
SOLA_DEVICE void load_tile(Rows<const In> from, Mul* to, int stride, const F& f) {
  constexpr int kAll = kRows * kColumns / kVector<In>, kShare = kAll / kThreads < 1 ? 1 : kAll / kThreads;
  constexpr int kAhead = kShare < kMostAhead ? kShare : kMostAhead;
  static_assert(kColumns % kVector<In> == 0);
  if (!is_vectorial(from.data, from.stride, from.columns)) {
    load_singly<kRows, kColumns, kThreads>(from, to, stride, f);
    return;
  }
#pragma unroll 1
  for (int i = int(threadIdx.x); i < kAll; i += kAhead * kThreads)
    load_share<true, kRows, kColumns, kThreads, kAhead>(from, to, stride, f, i);
}

// One thread's vectors of a tile: the same columns of every kDown-th row. They are copied asynchronously as they lie in
// memory, zeros where there is nothing, and the thread whose copies have come may change them.
template <int kRows, int kColumns, int kThreads, class In>
struct TileShare {
  static constexpr int kWide = kVector<In>, kAcross = kColumns / kWide, kDown = kThreads / kAcross;
  static_assert(kThreads % kAcross == 0 && kRows % kDown == 0);

  const unsigned thread = anew(threadIdx.x);
  const int row = int(thread / kAcross), column = int(thread % kAcross) * kWide;
  const Rows<const In> from;
  In* const to;
  const int stride;
  const int rows;  // from this thread's first row on, none of columns that don't exist

  SOLA_DEVICE TileShare(Rows<const In> source, In* tile, int tile_stride)
      : from(source),
        to(tile + row * tile_stride + column),
        stride(tile_stride),
        rows(column < source.columns ? source.rows - row : 0) {}

  SOLA_DEVICE void copy() const {
    const In* next = from.data + row * from.stride + column;
#pragma unroll 4
    for (int down = 0; down < kRows; down += kDown) {
      copy_async(to + down * stride, next, down < rows);
      next += kDown * from.stride;
    }
  }

  // f as for load_tile
  template <class F>
  SOLA_DEVICE void change(const F& f) const {
#pragma unroll 1
    for (int down = 0; down < kRows; down += kDown) {
      if (down >= rows) break;
      float x[kWide];
      unpack<In>(load_vec4(to + down * stride), x);
      change_numbers(f, row + down, x);
      store_vector<In>(x, to + down * stride);
    }
  }
};

// what is loaded where; `vectorial`: 16 bytes can be copied as they are, `changes`: a function changes them on the way
template <class In, class Mul>
struct TileLoad {
  Rows<const In> from;
  Mul* to;
  int stride;
  bool vectorial, changes;
};

// load_tile in two steps, of which the first doesn't wait where bytes can be copied. The second comes after
// wait_copies.
template <int kRows, int kColumns, int kThreads, int kMostAhead = 4, class In, class Mul, class F>
SOLA_DEVICE void start_tile(const TileLoad<In, Mul>& load, const F& f) {
  if constexpr (std::is_same_v<In, Mul>) {
    if (load.vectorial) {
      TileShare<kRows, kColumns, kThreads, In>(load.from, load.to, load.stride).copy();
    } else {
      load_singly<kRows, kColumns, kThreads>(load.from, load.to, load.stride, f);
    }
  } else {
    load_tile<kRows, kColumns, kThreads, kMostAhead>(load.from, load.to, load.stride, f);
  }
}
template <int kRows, int kColumns, int kThreads, class In, class Mul, class F>
SOLA_DEVICE void finish_tile(const TileLoad<In, Mul>& load, const F& f) {
  if constexpr (std::is_same_v<In, Mul>) {
    if (load.vectorial && load.changes)
      TileShare<kRows, kColumns, kThreads, In>(load.from, load.to, load.stride).change(f);
  }
}

// lets rows of up to `kColumns` numbers start on their way to the L2 cache, for a load some time later; kThreads: of a
// block, or of a warp that has rows of its own
template <int kColumns, int kThreads, class In>
SOLA_DEVICE void prefetch_rows(Rows<const In> from) {
  constexpr int kLine = 128 / int(sizeof(In)), kLines = (kColumns + kLine - 1) / kLine;
#pragma unroll 1
  for (int i = int(threadIdx.x) % kThreads; i < from.rows * kLines; i += kThreads) {
    const int column = i % kLines * kLine;
    if (column < from.columns) prefetch(from.data + i / kLines * from.stride + column);
  }
}

// load_tile without a function, and asynchronously where 16 bytes can be copied as they are
template <int kRows, int kColumns, int kThreads, class In>
SOLA_DEVICE void copy_tile(Rows<const In> from, In* to, int stride) {
  constexpr int kWide = kVector<In>;
  if (!is_vectorial(from.data, from.stride, from.columns)) {
    load_tile<kRows, kColumns, kThreads>(from, to, stride, [](int, float x) { return x; });
    return;
  }
#pragma unroll 4
  for (int i = int(threadIdx.x); i < kRows * kColumns / kWide; i += kThreads) {
    const int row = i / (kColumns / kWide), column = i % (kColumns / kWide) * kWide;
    In* target = to + row * stride + column;
    if (row < from.rows && column < from.columns) {
      copy_async(target, from.data + row * from.stride + column);
    } else {
      store_vec4(target, Vec4{});
    }
  }
}

// rows from shared memory to the caller's tensor
template <int kRows, int kColumns, int kThreads, class In>
SOLA_DEVICE void store_tile(const In* from, int stride, Rows<In> to) {
  constexpr int kWide = kVector<In>;
  const bool vectorial = is_vectorial(to.data, to.stride, to.columns);
  for (int i = int(threadIdx.x); i < kRows * kColumns / kWide; i += kThreads) {
    const int row = i / (kColumns / kWide), column = i % (kColumns / kWide) * kWide;
    if (row >= to.rows || column >= to.columns) continue;
    const In* source = from + row * stride + column;
    In* target = to.data + row * to.stride + column;
    if (vectorial) {
      write_vec4(target, load_vec4(source));
    } else {
      for (int j = 0; j < kWide && column + j < to.columns; ++j) target[j] = source[j];
    }
  }
}

SOLA_DEVICE float quad_sum(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}

SOLA_DEVICE float warp_sum(float x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x += shuffle_xor(x, lanes);
  return x;
}

// 1/(sum + eps), where 0 stands for an undefined quotient
SOLA_DEVICE float reciprocal(float denominator) { return denominator == 0.0f ? 0.0f : fast_reciprocal(denominator); }

}  // namespace sola::cuda
