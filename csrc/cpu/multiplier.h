// products of float tiles in the type Mul: as they are, or rounded to bfloat16 for machines that multiply that faster
#pragma once

#include "cpu/tiles.h"

namespace sola::SOLA_ISA {

// C (M × N) = [scale ·] C + left (M × K) · right (K × N), on operands that stay set from one product to the next
template <class Mul, class A>
class Multiplier {
 public:
  // room for operands of so many numbers; only a right-hand one that is given transposed is copied
  Multiplier(const Task& task, Arena& arena, int64_t, int64_t right) : task_(task), transposed_(arena.take<A>(right)) {}

  void set_left(Left<A> left, int64_t, int64_t K) {
    left_ = left;
    K_ = K;
  }
  void set_right(const A* right, int64_t stride, int64_t, int64_t N) {
    right_ = right;
    stride_ = stride;
    N_ = N;
  }

  // from its transpose, rows of K numbers; N of them, and zeros up to `padded`
  void set_right_transposed(const A* right, int64_t stride, int64_t K, int64_t N, int64_t padded) {
    if (N < padded) fill(transposed_, K * padded, A(0));
    transpose_rows(right, stride, N, K, transposed_, padded);
    set_right(transposed_, padded, K, padded);
  }

  // `rows` rows of the product from row i on, into C's rows from `c` on
  void run(int64_t i, int64_t rows, A* c, int64_t ldc, Into into, const A* column_scale = nullptr) const {
    const Left<A> left{left_.data + i * left_.row, left_.row, left_.column};
    gemm(task_, Product<A>{rows, N_, K_, left, right_, stride_, c, ldc, column_scale}, into);
  }

 private:
  const Task& task_;
  A* transposed_;
  Left<A> left_{};
  const A* right_ = nullptr;
  int64_t K_ = 0, N_ = 0, stride_ = 0;
};

SOLA_INLINE Vec<uint32_t> bf16_pairs(Vec<float> first, Vec<float> second) {
  return (bit_cast<Vec<uint32_t>>(round_to_bf16(first)) >> 16) | bit_cast<Vec<uint32_t>>(round_to_bf16(second));
}

// rows of floats, N a multiple of the lanes, into pairs of neighbouring rows: [K/2][N][2]; a missing row reads as zero
inline void pack_pairs(const float* from, int64_t stride, int64_t K, int64_t N, bf16* to) {
  typedef Vec<uint32_t> Pairs __attribute__((aligned(2), may_alias));
  for (int64_t k = 0; k < K; k += 2) {
    const float* row = from + k * stride;
    const bool last = k + 1 == K;
    for (int64_t c = 0; c < N; c += kLanes<float>) {
      const Vec<float> second = last ? Vec<float>{} : load(row + stride + c);
      *reinterpret_cast<Pairs*>(to + k * N + 2 * c) = bf16_pairs(load(row + c), second);
    }
  }
}

template <>
class Multiplier<bf16, float> {
 public:
  Multiplier(const Task& task, Arena& arena, int64_t left, int64_t right)
      : task_(task), left_(arena.take<bf16>(left)), right_(arena.take<bf16>(right)), staging_(arena.take<bf16>(left)) {}

  // takes K rounded up to pairs times M rounded up to vectors
  void set_left(Left<float> left, int64_t M, int64_t K) {
    K_ = align_up(K, 2);
    if (left.row == 1) {
      // pairs in k are 32-bit numbers, transposed as such
      typedef uint32_t Pair __attribute__((may_alias, aligned(2)));
      const int64_t wide = round_up<float>(M);
      pack_pairs(left.data, left.column, K, wide, staging_);
      transpose<uint32_t>(reinterpret_cast<const Pair*>(staging_), wide, K_ / 2, M, reinterpret_cast<Pair*>(left_),
                          K_ / 2);
      return;
    }
    for (int64_t i = 0; i < M; ++i) convert_row(left.data + i * left.row, K, left_ + i * K_, K_);
  }

  void set_right(const float* right, int64_t stride, int64_t K, int64_t N) {
    N_ = N;
    pack_pairs(right, stride, K, N, right_);
  }
  // needs as much room on the left as on the right
  void set_right_transposed(const float* right, int64_t stride, int64_t K, int64_t N, int64_t padded) {
    N_ = padded;
    pack_columns(right, stride, N, K, right_, padded, staging_);
  }

  void run(int64_t i, int64_t rows, float* c, int64_t ldc, Into into, const float* column_scale = nullptr) const {
    gemm(task_, Product<bf16>{rows, N_, K_, {left_ + i * K_, K_, 1}, right_, N_, c, ldc, column_scale}, into);
  }

 private:
  const Task& task_;
  bf16 *left_, *right_, *staging_;
  int64_t K_ = 0, N_ = 0;
};

}  // namespace sola::SOLA_ISA
