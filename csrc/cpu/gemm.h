// the one GEMM-tile wrapper: C (M × N) = [scale ·] C + A (M × K) · B (K × N) on tiles that fit the caches
//
// float and double run on a register-tiled micro-kernel written here; it reads A in either orientation, so transposed
// operands cost nothing. bfloat16 runs on oneDNN's brgemm (AMX or AVX512-BF16) through a function pointer, where the
// machine has such units; elsewhere tiles are widened to float when they are loaded.
#pragma once

#include "cpu/isa.h"
#include "cpu/vec.h"

namespace sola::SOLA_ISA {

// how an existing C enters the product
enum class Into { overwrite, accumulate, scale_columns };

// A(i, k) = data[i * row + k * column]
template <class T>
struct Left {
  const T* data;
  int64_t row, column;
};

// C and B are row-major with N a multiple of the vector's lanes; for bfloat16 B holds pairs of rows, [K/2][ldb][2], and
// an odd K is rounded up, so both operands must be padded with a zero
template <class T>
struct Product {
  int64_t M, N, K;
  Left<T> a;
  const T* b;
  int64_t ldb;
  Acc<T>* c;
  int64_t ldc;
  // factors for the columns of C, N of them, with Into::scale_columns
  const Acc<T>* column_scale = nullptr;
};

template <class T, int Rows, int Cols, Into into>
SOLA_INLINE void micro_kernel(const Product<T>& p, int64_t i0, int64_t j0) {
  constexpr int L = kLanes<T>;
  const T* a = p.a.data + i0 * p.a.row;
  const T* b = p.b + j0;
  T* c = p.c + i0 * p.ldc + j0;
  Vec<T> acc[Rows][Cols];
#pragma GCC unroll 32
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < Cols; ++j) {
      acc[i][j] = Vec<T>{};
    }
  }
  for (int64_t k = 0; k < p.K; ++k) {
    Vec<T> right[Cols];
#pragma GCC unroll 8
    for (int j = 0; j < Cols; ++j) right[j] = load(b + k * p.ldb + j * L);
#pragma GCC unroll 32
    for (int i = 0; i < Rows; ++i) {
      T left = a[i * p.a.row + k * p.a.column];
#pragma GCC unroll 8
      for (int j = 0; j < Cols; ++j) acc[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < Cols; ++j) {
      // C enters last: added to products one by one, a large C would round each of them
      if constexpr (into == Into::accumulate) {
        acc[i][j] += load(c + i * p.ldc + j * L);
      } else if constexpr (into == Into::scale_columns) {
        acc[i][j] += load(c + i * p.ldc + j * L) * load(p.column_scale + j0 + j * L);
      }
      store(c + i * p.ldc + j * L, acc[i][j]);
    }
  }
}

// one stripe of columns, from the top: as many blocks of Rows as fit, then the next smaller block
template <class T, int Cols, Into into, int Rows, int... Smaller>
void stripe(const Product<T>& p, int64_t i, int64_t j) {
  for (; i + Rows <= p.M; i += Rows) micro_kernel<T, Rows, Cols, into>(p, i, j);
  if constexpr (sizeof...(Smaller) > 0) {
    if (i < p.M) stripe<T, Cols, into, Smaller...>(p, i, j);
  }
}

// accumulators fill the register file but for B's row and one broadcast: 24 of 32 registers, or 12 of 16
template <class T, Into into>
void gemm_into(const Product<T>& p) {
  constexpr int L = kLanes<T>;
  constexpr bool kManyRegisters = SOLA_REGISTERS == 32;
  int64_t j = 0;
  if constexpr (kManyRegisters) {
    for (; j + 4 * L <= p.N; j += 4 * L) stripe<T, 4, into, 6, 4, 2, 1>(p, 0, j);
    for (; j + 2 * L <= p.N; j += 2 * L) stripe<T, 2, into, 12, 6, 3, 2, 1>(p, 0, j);
    for (; j < p.N; j += L) stripe<T, 1, into, 16, 8, 4, 2, 1>(p, 0, j);
  } else {
    for (; j + 2 * L <= p.N; j += 2 * L) stripe<T, 2, into, 6, 4, 2, 1>(p, 0, j);
    for (; j < p.N; j += L) stripe<T, 1, into, 8, 4, 2, 1>(p, 0, j);
  }
}

template <class T>
void gemm(const Task&, const Product<T>& p, Into into) {
  if (into == Into::overwrite) {
    gemm_into<T, Into::overwrite>(p);
  } else if (into == Into::accumulate) {
    gemm_into<T, Into::accumulate>(p);
  } else {
    gemm_into<T, Into::scale_columns>(p);
  }
}

inline void gemm(const Task& task, const Product<bf16>& p, Into into) {
  if (into == Into::scale_columns) {
    for (int64_t i = 0; i < p.M; ++i) {
      float* row = p.c + i * p.ldc;
      for (int64_t j = 0; j < p.N; j += kLanes<float>) store(row + j, load(row + j) * load(p.column_scale + j));
    }
  }
  const int64_t K = (p.K + 1) / 2 * 2;
  task.brgemm(p.M, p.N, K, p.a.row, p.ldb, p.ldc, into != Into::overwrite, p.a.data, p.b, p.c);
}

}  // namespace sola::SOLA_ISA
