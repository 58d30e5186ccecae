// kernels that test the emulator: products with known answers, and mistakes that it must notice

#include <vector>

#include "cuda/launch.h"
#include "cuda/tile.cuh"

namespace sola::cuda {
namespace {

struct ProductParams {
  const float *a, *b;  // 16 × 16 and 16 × 16, row by row
  float* c;
};

// c = a · b by one warp, with operands along or across their depth
template <class Mul, Along la, Along ra>
void product(ProductParams p) {
  constexpr int stride = kRowStride<Mul, 16>;
  Mul* a = reinterpret_cast<Mul*>(shared_memory());
  Mul* b = a + 16 * stride;
  for (int i = lane_of(); i < 256; i += kWarp) {
    const int row = i / 16, column = i % 16;
    a[la == Along::depth ? row * stride + column : column * stride + row] = from_float<Mul>(p.a[i]);
    b[ra == Along::depth ? column * stride + row : row * stride + column] = from_float<Mul>(p.b[i]);
  }
  sync_warp();
  float sums[1][2][4];
  clear(sums);
  multiply<la, ra>(sums, Operand<Mul>{a, stride}, Operand<Mul>{b, stride}, 16);
  for_sums<1, 2>([&](int m, int n, int i, int row, int column) { p.c[16 * row + column] = sums[m][n][i]; });
}

struct MistakeParams {
  int kind;
  float* out;
};

constexpr int kReversed = 64;  // two warps

void mistake(MistakeParams p) {
  float* numbers = reinterpret_cast<float*>(shared_memory());
  const int me = int(threadIdx.x), other = kReversed - 1 - me;
  switch (p.kind) {
    case 0:  // none: a block reverses its numbers
    case 1:  // no barrier between writing and reading
      numbers[me] = float(me);
      if (p.kind == 0) sync_block();
      p.out[me] = numbers[other];
      return;
    case 2:  // a barrier that half of the threads pass by
      if (me < kWarp) sync_block();
      return;
    case 3:  // a warp primitive that one lane passes by
      if (me != 7) p.out[me] = shuffle_xor(1.0f, 1);
      return;
    case 4:  // lanes of a warp at different primitives
      if (me % 2) {
        sync_warp();
      } else {
        p.out[me] = shuffle_xor(1.0f, 1);
      }
      return;
    case 5: {  // nobody waits for what is copied
      copy_async(numbers + 4 * me, p.out);
      commit_copies();
      sync_block();
      p.out[me] = numbers[4 * me];
      return;
    }
    case 7:  // a lane that no warp has
      p.out[me] = shuffle_from(1.0f, me == 7 ? 32 : 0);
      return;
    case 8:  // 16 bytes at an address between two numbers
      p.out[me] = bits_to_float(reinterpret_cast<const Vec4*>(p.out + 1)->word[me % 4]);
      return;
    case 9: {  // lanes that do something together, which orders no memory
      numbers[me] = float(me);
      const float sum = shuffle_xor(1.0f, 1);
      p.out[me] = numbers[me ^ 1] * sum;
      return;
    }
    case 10:  // a copy to where others still read
      if (me < kWarp) {
        p.out[me] = numbers[0];
      } else if (me == kWarp) {
        copy_async(numbers, p.out + kWarp);
        commit_copies();
        wait_copies<0>();
      }
      return;
    case 12: {  // matrices that don't lie in shared memory
      uint32_t words[4];
      load_matrices(words, p.out);
      return;
    }
    case 13:  // a copy that doesn't go there
      copy_async(p.out, p.out + 4);
      return;
    case 11:  // two blocks write the same number
      if (me == 0) p.out[0] = 1.0f;
      return;
    default:  // shared memory that nobody wrote
      p.out[me] = numbers[me];
  }
}

void nothing(MistakeParams) {}

template <class Mul>
int start_product(const ProductParams& p, int layout) {
  constexpr Along depth = Along::depth, other = Along::other;
  void (*const kernels[])(ProductParams) = {product<Mul, depth, depth>, product<Mul, depth, other>,
                                            product<Mul, other, depth>, product<Mul, other, other>};
  return launch(kernels[layout], 1, kWarp, 2 * 16 * 20 * sizeof(float), nullptr, p);
}

struct HandOverParams {
  float* numbers;
  bool waits;
};

void write_numbers(HandOverParams p) {
  let_next_start();
  p.numbers[threadIdx.x] = float(threadIdx.x);
}

void double_numbers(HandOverParams p) {
  if (p.waits) wait_for_results();
  p.numbers[threadIdx.x] *= 2.0f;
}

// Blocks of a cluster hand a number to the next one. kind 1: before that one may have begun; 2: with no barrier before
// the end, 3: from an address that isn't theirs
void pass_on(MistakeParams p) {
  float* numbers = reinterpret_cast<float*>(shared_memory());
  if (p.kind != 1) sync_cluster();
  if (threadIdx.x == 0) {
    float* to = p.kind == 3 ? p.out : numbers;
    *static_cast<float*>(of_rank(to, (cluster_rank() + 1) % int(gridDim.x))) = float(cluster_rank());
  }
  if (p.kind != 2) sync_cluster();
  if (threadIdx.x == 0) p.out[blockIdx.x] = numbers[0];
}

}  // namespace

int run_product(int type, int layout, const float* a, const float* b, float* c) {
  const ProductParams p{a, b, c};
  return type == 0   ? start_product<Bf16>(p, layout)
         : type == 1 ? start_product<Half>(p, layout)
         : type == 2 ? start_product<Tf32>(p, layout)
                     : start_product<float>(p, layout);
}

int run_mistake(int kind, float* out) {
  const int64_t blocks = kind == 11 ? 2 : 1;
  return launch(mistake, blocks, kReversed, 4 * kReversed * sizeof(float), nullptr, MistakeParams{kind, out});
}

int run_cluster(int kind, float* out) {
  constexpr int kBlocks = 4;
  return launch(pass_on, kBlocks, kWarp, sizeof(float), nullptr, MistakeParams{kind, out}, {kBlocks});
}

// a kernel that does nothing, in a launch of these sizes
int run_launch(int64_t blocks, int threads, int64_t shared) {
  return launch(nothing, blocks, threads, size_t(shared), nullptr, MistakeParams{});
}

// two kernels, of which the second may start early and waits for the first, or forgets to
int run_hand_over(bool waits, float* out) {
  const HandOverParams p{out, waits};
  const int error = launch(write_numbers, 1, kReversed, 0, nullptr, p);
  return error ? error : launch(double_numbers, 1, kReversed, 0, nullptr, p, kEarly);
}

int64_t quotient_of(int64_t n, int64_t by) { return quotient(n, Divisor(by)); }

}  // namespace sola::cuda
