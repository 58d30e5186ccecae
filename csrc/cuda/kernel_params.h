// what the host hands to each kernel, beside the structs of params.h; all pointers are device memory
#pragma once

#include "params.h"

// B batch, N queries, M keys, H heads, D head dim, V value head dim

namespace sola::cuda {

// tokens of one tile; ranges of tokens are whole tiles, and a chunk is one
constexpr int kTile = 64;

// from which side of a reader the tokens of a state lie
enum class Side { left, right };

// For every head and range of tokens S = Σ w_i φ(x_i)ᵀ y_i and c = Σ u_i φ(x_i). With decay γ both weights carry
// γ^(tokens of the range behind i) (left) or γ^(tokens of the range before i) (right).
struct GatherParams {
  View x, y;
  int64_t batches, heads, tokens, D, V;
  int64_t ranges, per_range;  // tokens per range, a multiple of kTile
  FeatureMap map;
  const float* weight;       // (B, H, tokens); null for 1
  const float* coefficient;  // (B, H, tokens); null for 1
  const float* decay;        // (H); null for 1
  Side side;
  float* sums;  // (B·H, ranges, D·V + D)
};

// adds the ranges of every head up, in their order
struct ReduceParams {
  int64_t heads, ranges, D, V;
  const float* sums;  // (heads, ranges, D·V + D)
  float* state;       // (heads, D, V)
  float* companion;   // (heads, D)
};

// A block keeps the state of a head in shared memory where it fits (read.cu); otherwise parts of it come and go
// (read_wide.cu).
constexpr bool fits_shared(Dtype dtype, int64_t D, int64_t V) {
  const int64_t most = dtype == Dtype::f32 ? 64 : 128;
  return D <= most && V <= most;
}
// whether registers hold dS beside the gradients of queries
constexpr bool sums_beside_gradients(int64_t D, int64_t V) { return D <= 64 && V <= 64; }

// Blocks per multiprocessor of the kernels below, at head dims up to `width`: registers must allow them, and on compute
// capability 9.0 shared memory does. Only bfloat16 is multiplied as it lies in memory, so other types need more of
// both.
constexpr int resident_gathers(Dtype dtype, int64_t width) {
  return (width <= 64 ? 4 : 2) - (dtype == Dtype::bf16 ? 0 : 1);
}
constexpr int resident_reads(Dtype dtype, int64_t width, bool gradients) {
  if (width > 64) return dtype == Dtype::bf16 && !gradients ? 3 : 2;
  return (width <= 32 ? 5 : 4) - (gradients ? 1 : 0) - (dtype == Dtype::f32 ? 1 : 0);
}

// what queries or keys read from one global state, in ranges of tokens
struct ReadParams {
  View x;       // (B, tokens, H, depth): queries, mapped; a gradient or values as they are
  View phi;     // gradients: what is mapped, (B, tokens, H, D)
  View out;     // (B, tokens, H, V), gradients (B, tokens, H, D)
  View second;  // gradients of keys: of values, (B, tokens, H, V)
  int64_t batches, heads, tokens, D, V;
  int64_t ranges, per_range;  // tokens per range, a multiple of kTile
  FeatureMap map;
  const float* state;      // (B·H, D, V)
  const float* companion;  // (B·H, D); null: no normaliser
  float eps;
  // gradients of queries: what the ranges sum up, or what a gather needs for it: with a normaliser its inverse, and
  // the gradient of the normaliser
  float* sums;              // (B·H, ranges, D·V + D), with sums_beside_gradients
  float* inverse;           // (B, H, tokens)
  float* grad_denominator;  // (B, H, tokens)
};

enum class Read { values, query_gradients, key_gradients };

struct SoftmaxBackwardParams {
  SoftmaxParams op;
  float* delta;  // (B, H, N), dO · O
};

// WKV in stretches of tokens; a state is the sums of one side, (numbers, C), where numbers are the values of the scan,
// its gauge and its reference
struct WkvWork {
  WkvParams op;  // grad_decay, grad_bonus: (B, stretches, C) partial sums
  int64_t groups;
  float* states;  // (B, stretches, 2 sides, numbers, C): what stretches sum up by themselves, then what enters them
  float* totals;  // (B, groups, 2 sides, numbers, C): the same of groups of stretches
};

constexpr int kWkvForwardTokens = 32, kWkvBackwardTokens = 16, kWkvGroup = 64;
constexpr int kWkvForwardNumbers = 4, kWkvBackwardNumbers = 6 + 4;

// adds (rows, C) up over its rows, in a fixed order
struct ColumnSumParams {
  const float* from;
  float* to;
  int64_t rows, C;
};

// states of the chunks of all heads, (B·H, chunks, D·V + D): what enters each from one side; null where nothing does
struct ChunkStates {
  const float* left;
  const float* right;
};

// turns what chunks sum up by themselves into what enters them: in ← γ^tokens · in + sum of the chunk before
struct ChunkConnectParams {
  int64_t batches, heads, tokens, chunks, numbers;
  const float* decay;  // (H); null for 1
  Side side;
  float* states;
};

// what the two kernels below need of a call. Rows are queries and columns keys, or the other way round.
struct ChunkedCall {
  int64_t batches, heads, tokens, chunks, D, V;
  FeatureMap map;
  const float* decay;  // (H); null for 1
  bool causal;
  bool rows_are_keys;
};

// sums of more columns than this don't fit in registers: further blocks take the others
constexpr int kPartColumns = 128;
constexpr int64_t parts_of(int64_t columns) { return (columns + kPartColumns - 1) / kPartColumns; }

// The gradient of log γ comes from queries and pairs, and from keys, by parts of their head dim; and from states that
// pass a whole chunk.
constexpr int64_t decay_shares(int64_t D) { return 2 * parts_of(D) + 1; }

// out_i = Σ_j w_ij φ(x_i)·φ(y_j) u_j: outputs, or the gradient of v
struct ChunkValuesParams {
  ChunkedCall call;
  View x, y, u, out;
  const float* weight;  // (B, H, N), of u; null for 1
  ChunkStates states;
  float* normaliser;  // (B, H, N): is computed, kept here and divided by; null for none
  float eps;
};

// dφ(x_i) = Σ_j w_ij (α_i a_i · β_j b_j + α′_i + β′_j) φ(y_j): the gradient of q or k
struct ChunkGradientsParams {
  ChunkedCall call;
  View a, b, x, y, out;
  const float *row_weight, *column_weight;            // α, β; null for 1
  const float *row_coefficient, *column_coefficient;  // α′, β′; null for 0
  bool companion;                                     // whether the companion of the states is read, with α′ or 1
  ChunkStates states;
  float* grad_log_decay;  // (B·H, chunks, decay_shares); null where nobody asks
};

struct ChunkCrossingParams {
  ChunkedCall call;
  ChunkStates keys, grads;
  bool companion;
  float* grad_log_decay;
};

struct ChunkDecayParams {
  int64_t batches, heads, chunks, shares;
  const float* decay;           // (H)
  const float* grad_log_decay;  // (B·H, chunks, decay_shares)
  float* grad_decay;            // (H)
};

// r = 1/normaliser and dd = −r dO·out, by one warp per token
struct ChunkDenominatorParams {
  View grad_out, out;
  int64_t batches, heads, tokens, V;
  const float* normaliser;
  float *inverse, *grad_denominator;  // (B, H, N)
};

}  // namespace sola::cuda
