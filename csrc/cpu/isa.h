// the table of compiled kernels, one per instruction set, and the choice made at load
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "params.h"

namespace sola {

// C (M × N, float) [+]= A (M × K, bfloat16) · B (K × N, bfloat16 in pairs of rows: [K/2][N][2])
using BrgemmBf16 = void (*)(int64_t M, int64_t N, int64_t K, int64_t lda, int64_t ldb, int64_t ldc, bool add,
                            const void* a, const void* b, float* c);

// what a kernel needs beside its parameters; `scratch` is the thread's own and 64-byte aligned
struct Task {
  Dtype dtype;
  BrgemmBf16 brgemm;  // null: bfloat16 tiles are widened to float
  std::byte* scratch;
};

// a range of tokens of one head
struct Place {
  int64_t batch, head, begin, end;
};

// one share of a sum that several tasks build up; `sums` holds all shares, or is null when there is only one
struct Split {
  int64_t index = 0, count = 1;
  void* sums = nullptr;
};

struct SoftmaxForwardKernels {
  size_t (*scratch)(const SoftmaxParams&, const Task&, int64_t rows);
  // queries [begin, end) of a head
  void (*run)(const SoftmaxParams&, const Task&, Place);
};

struct SoftmaxBackwardKernels {
  size_t (*scratch)(const SoftmaxParams&, const Task&, Split);
  // how many numbers one split sums up
  int64_t (*sums)(const SoftmaxParams&, const Task&);
  // one split of a head
  void (*run)(const SoftmaxParams&, const Task&, Place, Split);
  // keys [begin, end) of a head, all splits added up
  void (*finish)(const SoftmaxParams&, const Task&, Place, Split);
};

struct LinearKernels {
  size_t (*scratch)(const LinearParams&, const Task&);
  // numbers in one share of the sums (state and key sum, padded)
  int64_t (*share)(const LinearParams&, const Task&);
  // one share, from keys [begin, end) of a head
  void (*gather)(const LinearParams&, const Task&, Place, void* share);
  // adds up the shares of a head into the first, and into the saved state if there is one
  void (*combine)(const LinearParams&, const Task&, Place, Split);
  // queries [begin, end) of a head
  void (*read)(const LinearParams&, const Task&, Place);
  // backward: dq of queries [begin, end) and their share of the state's gradient; dk and dv of keys [begin, end)
  void (*query_gradients)(const LinearParams&, const Task&, Place, void* share);
  void (*key_gradients)(const LinearParams&, const Task&, Place, const void* sums);
};

// The states that enter a segment of chunks, in this order: keys and values from the left, gradients from the right
// (backward only), and unless causal keys and values from the right, gradients from the left (backward only).
struct ChunkedKernels {
  // scratch bytes for segments of so many tokens
  size_t (*scratch)(const ChunkedParams&, const Task&, int64_t tokens, bool backward);
  // numbers in one state
  int64_t (*state)(const ChunkedParams&, const Task&);
  // what tokens [begin, end) of a head leave behind for each state
  void (*gather)(const ChunkedParams&, const Task&, Place, bool backward, void* states);
  // turns what `count` segments of `tokens` leave behind into what enters them
  void (*connect)(const ChunkedParams&, const Task&, Place, bool backward, int64_t count, int64_t tokens, void* states);
  // outputs of tokens [begin, end), given the states that enter; null at the ends of a head
  void (*forward)(const ChunkedParams&, const Task&, Place, const void* states);
  // gradients of tokens [begin, end); returns the segment's share of d loss / d log_decay
  double (*backward)(const ChunkedParams&, const Task&, Place, const void* states);
};

// tokens [begin, end) of the block of channels that starts at `channel`; the sequence has been cut into several
struct Stretch {
  int64_t batch, channel, begin, end, index;
};

// WKV, forward or backward. The states of a stretch: what enters it from either side.
struct WkvKernels {
  // channels in a block
  int64_t (*block)(const WkvParams&, const Task&);
  // scratch bytes for so many tokens; bytes of a stretch's states
  size_t (*scratch)(const WkvParams&, const Task&, int64_t tokens);
  size_t (*states)(const Task&);
  // what a stretch sums up by itself; then, for `count` stretches of [begin, end)'s length, what enters each
  void (*gather)(const WkvParams&, const Task&, Stretch, void* states);
  void (*connect)(const WkvParams&, const Task&, Stretch, int64_t count, void* states);
  // outputs or gradients of a stretch; states are null when it is the whole sequence
  void (*run)(const WkvParams&, const Task&, Stretch, const void* states);
};

// mixes of tokens with their neighbours on the grid
struct ShiftMixKernels {
  size_t (*scratch)(const ShiftMixParams&, const Task&);
  // tokens [begin, end) of an image, counted along its rows
  void (*forward)(const ShiftMixParams&, const Task&, Place);
  // and their gradients; `index` of the range that has them, in grad_ratios
  void (*backward)(const ShiftMixParams&, const Task&, Place, int64_t index);
};

// a norm over the channels of tokens [begin, end)
struct LayerNormKernels {
  size_t (*scratch)(const LayerNormParams&, const Task&);
  void (*forward)(const LayerNormParams&, const Task&, Place);
  // and their gradients; `index` of the range that has them, in sums
  void (*backward)(const LayerNormParams&, const Task&, Place, int64_t index);
};

// hidden units [first, last)
struct Units {
  int64_t first, last;
};

// the gated feed-forward part of a layer, on tokens [begin, end)
struct ChannelMixForwardKernels {
  size_t (*scratch)(const ChannelMixParams&, const Task&, int64_t rows);
  // outputs; with `partial` (tiles, C, 64) only what some hidden units give, before the gate
  void (*run)(const ChannelMixParams&, const Task&, Place, Units, void* partial);
  // the gate over `count` such sums, `size` numbers apart
  void (*finish)(const ChannelMixParams&, const Task&, Place, const void* partial, int64_t count, int64_t size);
};

struct ChannelMixBackwardKernels {
  size_t (*scratch)(const ChannelMixParams&, const Task&, int64_t rows);
  // `columns` of a gradient of weights, padded
  int64_t (*padded)(const Task&, int64_t columns);
  // 16-bit weights transposed, columns of them from `first` on, as far as `last`
  void (*turn)(const void* from, int64_t rows, int64_t columns, int64_t first, int64_t last, void* to);
  // gradients of the tokens; adds to a share of the weights' gradients, or begins it. What hidden units have no part in
  // comes with the first ones. With `partial` (tiles, C, 64) only what some hidden units give of grad_x_k
  void (*run)(const ChannelMixParams&, const Task&, Place, Units, int64_t share, bool begins, void* partial);
  // the sum of `count` such gradients, `size` numbers apart
  void (*finish)(const ChannelMixParams&, const Task&, Place, const void* partial, int64_t count, int64_t size);
};

// fixed amounts of work on data in the first caches, from which the host measures what a core can do
struct RateKernels {
  size_t (*scratch)(const Task&);
  // products of tiles; returns the floating-point operations done
  double (*multiply)(const Task&);
  // float exponentials of the kind that softmax uses; returns how many
  double (*exponentiate)(const Task&);
};

struct Kernels {
  const char* name;
  const SoftmaxForwardKernels& softmax_forward;
  const SoftmaxBackwardKernels& softmax_backward;
  const LinearKernels& linear_attention;
  const ChunkedKernels& chunked_attention;
  const WkvKernels& wkv_forward;
  const WkvKernels& wkv_backward;
  const ShiftMixKernels& shift_mix;
  const LayerNormKernels& layer_norm;
  const ChannelMixForwardKernels& channel_mix_forward;
  const ChannelMixBackwardKernels& channel_mix_backward;
  const RateKernels& rates;
};

// one of several ways to run, best first; `refusal` says why this one can't be had here, and is empty if it can
struct Choice {
  std::string name, refusal;
  bool chosen;
};

// the best set this machine runs, or the one that SOLA_ISA names; throws std::runtime_error for a set it can't run
const Kernels& kernels();
std::vector<Choice> instruction_sets();

}  // namespace sola
