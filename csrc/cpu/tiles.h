// moving blocks between the caller's tensors and the tiles that the kernels multiply
#pragma once

#include <utility>

#include "cpu/gemm.h"

namespace sola::SOLA_ISA {

template <class T>
constexpr bool is_bf16 = false;
template <>
inline constexpr bool is_bf16<bf16> = true;

constexpr int64_t align_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// hands out 64-byte aligned pieces of a scratch block; with a null base it only measures
class Arena {
 public:
  explicit Arena(std::byte* base) : base_(base) {}

  template <class T>
  T* take(int64_t count) {
    std::byte* piece = base_ + used_;
    used_ += align_up(count * int64_t(sizeof(T)), 64);
    return reinterpret_cast<T*>(piece);
  }

  size_t used() const { return used_; }
  bool backed() const { return base_ != nullptr; }

 private:
  std::byte* base_;
  size_t used_ = 0;
};

template <class T>
SOLA_INLINE T* at(const View& view, int64_t batch, int64_t token, int64_t head) {
  return static_cast<T*>(view.data) + batch * view.batch + token * view.token + head * view.head;
}

// calls f(Types<In, Mul>{}): the caller's type and the type in which its tiles are multiplied
template <class In, class Mul>
struct Types {};

template <class F>
auto with_types(const Task& task, F&& f) {
  if (task.dtype == Dtype::f64) return f(Types<double, double>{});
  if (task.dtype == Dtype::f32) return f(Types<float, float>{});
  if (task.dtype == Dtype::f16) return f(Types<f16, float>{});
  if (task.brgemm) return f(Types<bf16, bf16>{});
  return f(Types<bf16, float>{});
}

template <class T>
SOLA_INLINE Acc<T> dot(const T* a, const T* b, int64_t n) {
  constexpr int64_t L = kLanes<Acc<T>>;
  Vec<Acc<T>> total{};
  int64_t i = 0;
  for (; i + L <= n; i += L) total += load(a + i) * load(b + i);
  if (i < n) total += load_part(a + i, n - i) * load_part(b + i, n - i);
  return sum<Acc<T>>(total);
}

// the same for many numbers: sums of a few hundred, added up in double
template <class T>
double long_dot(const T* a, const T* b, int64_t n) {
  constexpr int64_t kBlock = 16 * kLanes<Acc<T>>;
  double total = 0;
  for (int64_t i = 0; i < n; i += kBlock) total += double(dot(a + i, b + i, n - i < kBlock ? n - i : kBlock));
  return total;
}

template <class T>
SOLA_INLINE void fill(T* p, int64_t n, T value) {
  for (int64_t i = 0; i < n; ++i) p[i] = value;
}

// one row: `n` numbers converted, then zeros up to `padded`
template <class To, class From>
SOLA_INLINE void convert_row(const From* from, int64_t n, To* to, int64_t padded) {
  if constexpr (sizeof(To) == sizeof(From)) {
    std::memcpy(to, from, n * sizeof(To));
  } else {
    constexpr int L = kLanes<Acc<From>>;
    int64_t i = 0;
    for (; i + L <= n; i += L) store(to + i, load(from + i));
    if (i < n) store_part(to + i, load_part(from + i, n - i), n - i);
  }
  if (n < padded) std::memset(to + n, 0, (padded - n) * sizeof(To));
}

// asks for rows that will be read soon: heads interleave in memory, so the hardware's own prefetchers lose the trail
template <class T>
SOLA_INLINE void prefetch_rows(const T* from, int64_t stride, int64_t rows, int64_t columns) {
  constexpr int64_t kLine = 64 / int64_t(sizeof(T));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; c += kLine) __builtin_prefetch(from + r * stride + c, 0, 2);
  }
}

// rows of a (token-strided) matrix into a packed one with `padded` columns, asking for the row `ahead` rows on
template <class To, class From>
void load_rows(const From* from, int64_t stride, int64_t rows, int64_t columns, To* to, int64_t padded,
               int64_t ahead = 0) {
  for (int64_t r = 0; r < rows; ++r) {
    if (ahead) prefetch_rows(from + (r + ahead) * stride, stride, 1, columns);
    convert_row(from + r * stride, columns, to + r * padded, padded);
  }
}

// the first `columns` of packed rows into a (token-strided) matrix
template <class To, class From>
void store_rows(const From* from, int64_t padded, int64_t rows, int64_t columns, To* to, int64_t stride) {
  for (int64_t r = 0; r < rows; ++r) convert_row(from + r * padded, columns, to + r * stride, columns);
}

// calls f(In{}) with the caller's type
template <class F>
auto with_input(const Task& task, F&& f) {
  return with_types(task, [&]<class In, class Mul>(Types<In, Mul>) { return f(In{}); });
}

// ---- transposition of L × L blocks in registers, by rounds of interleaving

template <class V, class T, size_t... I>
SOLA_INLINE V interleave(V a, V b, int half, std::index_sequence<I...>) {
  constexpr int L = sizeof...(I);
#if defined(__clang__)
  if (half == 0) return __builtin_shufflevector(a, b, (I / 2 + (I % 2) * L)...);
  return __builtin_shufflevector(a, b, (I / 2 + L / 2 + (I % 2) * L)...);
#else
  typedef T Index __attribute__((vector_size(sizeof(V))));
  if (half == 0) return __builtin_shuffle(a, b, Index{T(I / 2 + (I % 2) * L)...});
  return __builtin_shuffle(a, b, Index{T(I / 2 + L / 2 + (I % 2) * L)...});
#endif
}

// T is an unsigned integer as wide as the element
template <class T>
SOLA_INLINE void transpose_block(const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  constexpr int L = kLanes<T>;
  using V = Vec<T>;
  V a[L], b[L];
#pragma GCC unroll 64
  for (int i = 0; i < L; ++i) a[i] = *reinterpret_cast<const V*>(from + i * from_stride);
#pragma GCC unroll 8
  for (int round = 1; round < L; round *= 2) {
#pragma GCC unroll 64
    for (int i = 0; i < L / 2; ++i) {
      b[2 * i] = interleave<V, T>(a[i], a[i + L / 2], 0, std::make_index_sequence<L>{});
      b[2 * i + 1] = interleave<V, T>(a[i], a[i + L / 2], 1, std::make_index_sequence<L>{});
    }
#pragma GCC unroll 64
    for (int i = 0; i < L; ++i) a[i] = b[i];
  }
#pragma GCC unroll 64
  for (int i = 0; i < L; ++i) *reinterpret_cast<V*>(to + i * to_stride) = a[i];
}

template <class T>
void transpose(const T* from, int64_t from_stride, int64_t rows, int64_t columns, T* to, int64_t to_stride) {
  constexpr int64_t L = kLanes<T>;
  const int64_t whole_rows = rows / L * L, whole_columns = columns / L * L;
  for (int64_t r = 0; r < whole_rows; r += L) {
    for (int64_t c = 0; c < whole_columns; c += L) {
      transpose_block(from + r * from_stride + c, from_stride, to + c * to_stride + r, to_stride);
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = r < whole_rows ? whole_columns : 0; c < columns; ++c) {
      to[c * to_stride + r] = from[r * from_stride + c];
    }
  }
}

template <int Bytes>
struct UnsignedOf;
template <>
struct UnsignedOf<2> {
  using type = uint16_t;
};
template <>
struct UnsignedOf<4> {
  using type = uint32_t;
};
template <>
struct UnsignedOf<8> {
  using type = uint64_t;
};

template <class T>
SOLA_INLINE void transpose_rows(const T* from, int64_t stride, int64_t rows, int64_t columns, T* to,
                                int64_t to_stride) {
  using U = typename UnsignedOf<sizeof(T)>::type;
  typedef U Alias __attribute__((may_alias));
  transpose<U>(reinterpret_cast<const Alias*>(from), stride, rows, columns, reinterpret_cast<Alias*>(to), to_stride);
}

// ---- right-hand operands of a product

// B (columns × width) with B(c, r) = from(r, c): the rows of a tensor become the columns of a tile `width` wide,
// missing rows read as zero. `staging` holds rows × columns numbers of type To. bfloat16 pairs up neighbours in c.
template <class To, class From>
void pack_columns(const From* from, int64_t stride, int64_t rows, int64_t columns, To* to, int64_t width, To* staging) {
  if constexpr (is_bf16<To>) {
    // a pair of bfloat16 moves as one 32-bit number
    typedef uint32_t Pair __attribute__((may_alias, aligned(2)));
    const int64_t pairs = (columns + 1) / 2;
    load_rows(from, stride, rows, columns, staging, 2 * pairs);
    for (int64_t i = 0; rows < width && i < pairs * width * 2; ++i) to[i] = To{};
    transpose<uint32_t>(reinterpret_cast<const Pair*>(staging), pairs, rows, pairs, reinterpret_cast<Pair*>(to), width);
  } else {
    load_rows(from, stride, rows, columns, staging, columns);
    if (rows < width) fill(to, columns * width, To{});
    transpose_rows(staging, columns, rows, columns, to, width);
  }
}

// B (rows × width) with B(r, c) = from(r, c), padded with zeros to `width`. bfloat16 pairs up neighbours in r.
template <class To, class From>
void pack_rows(const From* from, int64_t stride, int64_t rows, int64_t columns, To* to, int64_t width) {
  if constexpr (is_bf16<To>) {
    if (columns < width || rows % 2) std::memset(to, 0, align_up(rows, 2) * width * sizeof(To));
    for (int64_t r = 0; r < rows; ++r) {
      To* pairs = to + (r / 2 * width) * 2 + r % 2;
      for (int64_t c = 0; c < columns; ++c) pairs[2 * c] = from[r * stride + c];
    }
  } else {
    load_rows(from, stride, rows, columns, to, width);
  }
}

}  // namespace sola::SOLA_ISA
