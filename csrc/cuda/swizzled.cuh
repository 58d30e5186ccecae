// tiles of 16-bit numbers as tensor cores of a warpgroup read them, and products of such tiles
//
// A tile lies in shared memory in blocks of 64 (or 32) columns, each block row by row without padding; groups of 16
// bytes are exchanged in a pattern that repeats every eight rows, so that any eight rows touch all banks. The same tile
// serves as an operand with its depth along rows and as one with its depth across them.
#pragma once

#include "cuda/tile.cuh"
#include "cuda/warpgroup.cuh"

namespace sola::cuda {

// where the pattern of a tile begins
constexpr uint32_t kTileAlignment = 1024;

template <int rows, int columns>
struct SwizzledTile {
  static constexpr int kRows = rows, kColumns = columns;
  static constexpr int kBlock = kColumns < 64 ? kColumns : 64, kRowBytes = 2 * kBlock, kBlockBytes = kRows * kRowBytes;
  static constexpr uint32_t kBytes = 2 * kRows * kColumns;
  // the group of 16 bytes within a row is combined with the number of its 128 bytes
  static constexpr uint32_t kPattern = kRowBytes == 128 ? 0x70 : 0x30;
  static_assert((kBlock == 32 || kBlock == 64) && kColumns % kBlock == 0 && kBlockBytes % kTileAlignment == 0);

  // bytes from the start of the tile to eight neighbours of a row
  static SOLA_DEVICE uint32_t place(int row, int column) {
    const uint32_t plain = uint32_t(column / kBlock * kBlockBytes + row * kRowBytes + column % kBlock * 2);
    return plain ^ (plain >> 3 & kPattern);
  }

  // What tells tensor cores where an operand lies; `leading`: from one block of columns to the next. Addresses are
  // counted in 16 bytes, so that a constant added to the low word moves an operand.
  static SOLA_DEVICE uint64_t describe(uint32_t place, uint32_t leading) {
    constexpr uint32_t kMode = kRowBytes == 128 ? 1 : 2, kHigh = uint32_t(8 * kRowBytes / 16) | kMode << 30;
    return uint64_t(kHigh) << 32 | (place + (leading / 16 << 16));
  }
  // rows from `row` on, columns depth … depth + 15 summed over
  static SOLA_DEVICE uint64_t along(uint32_t tile, int row, int depth) {
    return describe(tile + uint32_t(depth / kBlock * (kBlockBytes / 16) + row * (kRowBytes / 16) + depth % kBlock / 8),
                    16);
  }
  // all columns, rows depth … depth + 15 summed over
  static SOLA_DEVICE uint64_t across(uint32_t tile, int depth) {
    return describe(tile + uint32_t(depth * (kRowBytes / 16)), kBlockBytes);
  }
};

// rows into a tile, asynchronously, zeros where there is nothing; rows must be such that 16 bytes can be copied
template <class Tile, int kThreads, class In>
SOLA_DEVICE void copy_swizzled(Rows<const In> from, unsigned char* tile) {
  // threads go down by whole repetitions of the pattern, so that a thread's places differ by a constant
  constexpr int kAcross = Tile::kColumns / 8, kDown = kThreads / kAcross;
  static_assert(kThreads % kAcross == 0 && kDown % 8 == 0);
  const int first = int(threadIdx.x) / kAcross, column = int(threadIdx.x) % kAcross * 8;
  unsigned char* to = tile + Tile::place(first, column);
  const In* source = from.data + first * from.stride + column;
#pragma unroll
  for (int down = 0; down < Tile::kRows; down += kDown) {
    const int row = first + down;
    if (Tile::kRows % kDown != 0 && row >= Tile::kRows) break;
    copy_async(to + down * Tile::kRowBytes, source, row < from.rows && column < from.columns);
    source += kDown * from.stride;
  }
}

// What one thread of a warpgroup copies of rows that fill tile after tile, in the same way. Whole tiles, which are
// most, cost little more than the copies.
template <class Tile, class In>
struct TileCopies {
  static constexpr int kAcross = Tile::kColumns / 8, kDown = kWarpgroup / kAcross;
  static_assert(Tile::kRows % kDown == 0 && kDown % 8 == 0);

  const In* next;  // of the next tile
  int64_t stride;
  int rows;  // that are left
  int columns;

  SOLA_DEVICE explicit TileCopies(Rows<const In> from)
      : next(from.data + first() * from.stride + column()),
        stride(from.stride),
        rows(from.rows),
        columns(from.columns) {}

  SOLA_DEVICE static int first() { return int(threadIdx.x) % kWarpgroup / kAcross; }
  SOLA_DEVICE static int column() { return int(threadIdx.x) % kAcross * 8; }

  SOLA_DEVICE void copy(unsigned char* tile) {
    if (rows <= 0) return;
    unsigned char* to = tile + Tile::place(first(), column());
    if (rows >= Tile::kRows && columns == Tile::kColumns) {
#pragma unroll
      for (int down = 0; down < Tile::kRows; down += kDown) {
        copy_async(to + down * Tile::kRowBytes, next);
        next += kDown * stride;
      }
    } else {
#pragma unroll 1
      for (int down = 0; down < Tile::kRows; down += kDown) {
        copy_async(to + down * Tile::kRowBytes, next, first() + down < rows && column() < columns);
        next += kDown * stride;
      }
    }
    rows -= Tile::kRows;
  }
};

// where tensor cores find what lies there, in units of 16 bytes
SOLA_DEVICE uint32_t operand_place(const void* shared) { return shared_address(shared) / 16; }

// the first place in the block's shared memory where a pattern may begin
SOLA_DEVICE unsigned char* aligned_memory() {
  unsigned char* memory = shared_memory();
  return memory + (kTileAlignment - shared_address(memory) % kTileAlignment) % kTileAlignment;
}

// until the tiles that the block's threads have copied can be multiplied
SOLA_DEVICE void await_tiles() {
  wait_copies<0>();
  publish_to_tensor_cores();
  sync_block();
}

// Starts sums = left·rightᵀ for the 64 rows of `left` from `row` on; all columns, or the first ones.
template <class In, class Left, class Right, int columns = Left::kColumns, int NT>
SOLA_DEVICE void start_along(float (&sums)[NT][4], uint32_t left, int row, uint32_t right) {
  static_assert(Left::kColumns == Right::kColumns && Right::kRows == 8 * NT);
#pragma unroll
  for (int depth = 0; depth < columns; depth += 16) {
    product_of_tiles<In>(sums, Left::along(left, row, depth), Right::along(right, 0, depth), depth > 0);
  }
  commit_products();
}

// sums of a lane, rounded, as left operands of 16 columns each: written before the fence in front of their products
template <int KT>
using Packed = uint32_t[KT / 2][4];

template <class In, int KT>
SOLA_DEVICE void pack_sums(const float (&sums)[KT][4], Packed<KT>& packed) {
#pragma unroll
  for (int k = 0; k < KT / 2; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float (&from)[4] = sums[2 * k + i / 2];
      packed[k][i] = pack<In>(from[i % 2 * 2], from[i % 2 * 2 + 1]);
    }
  hold(packed);
}

// Starts sums += left·right.
template <class In, class Right, int KT, int NT>
SOLA_DEVICE void start_across(float (&sums)[NT][4], const uint32_t (&left)[KT][4], uint32_t right) {
  static_assert(Right::kColumns == 8 * NT && Right::kRows == 16 * KT);
#pragma unroll
  for (int k = 0; k < KT; ++k) product_of_registers<In, Along::other>(sums, left[k], Right::across(right, 16 * k));
  commit_products();
}

// Starts sums += left·rightᵀ.
template <class In, class Right, int KT, int NT>
SOLA_DEVICE void start_along(float (&sums)[NT][4], const uint32_t (&left)[KT][4], uint32_t right) {
  static_assert(Right::kRows == 8 * NT && Right::kColumns == 16 * KT);
#pragma unroll
  for (int k = 0; k < KT; ++k) product_of_registers<In, Along::depth>(sums, left[k], Right::along(right, 0, 16 * k));
  commit_products();
}

}  // namespace sola::cuda
