// what the host hands to each kernel, beside the structs of params.h; all pointers are device memory
#pragma once

#include "cuda/divisor.h"
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
  float* sums;             // (B·H, ranges, D·V + D)
  bool distances = false;  // weights are multiplied by the exponent of γ: the derivative of the sums by log γ
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
// both, where that shows.
constexpr int resident_gathers(Dtype dtype, int64_t width) {
  return (width <= 64 ? 4 : 2) - (dtype == Dtype::f32 ? 1 : 0);
}
constexpr int resident_reads(Dtype dtype, int64_t width, bool gradients) {
  if (width > 64) return dtype == Dtype::bf16 && !gradients ? 3 : 2;
  return (width <= 32 ? 5 : 4) - (gradients ? 1 : 0) - (dtype == Dtype::f32 ? 1 : 0);
}

// the same of the kernels that clusters run, which do both
constexpr int resident_clusters(Dtype dtype, int64_t width, bool gradients) {
  const int gathers = resident_gathers(dtype, width), reads = resident_reads(dtype, width, gradients);
  return gradients || reads < gathers ? reads : gathers;
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

// Gathering and reading by one kernel, where a cluster of blocks owns the tokens of a head: as many ranges as it has
// blocks. Head dims up to kClusterWidth.
constexpr int kClusterWidth = 64, kMostClusterBlocks = 8;
struct ClusterParams {
  GatherParams gather;
  ReadParams read;
  float *state, *companion;  // outputs: (B·H, D, V), (B·H, D)
};
struct ClusterBackwardParams {
  ReadParams queries, keys;
};

// head dims up to which 32 queries of a warp leave their sums in registers
constexpr int kWideSoftmax = 128;
// rows of a block of warpgroups, at the least
constexpr int kHopperRows = 128;

struct SoftmaxBackwardParams {
  SoftmaxParams op;
  float* saved;  // (B, H, N, 2): logsumexp in units of log 2, and δ = dO · O
};

// tokens of a lane, and warps of a block that have neighbouring tokens: together a stretch
constexpr int kWkvForwardTokens = 16, kWkvBackwardTokens = 8, kWkvWarps = 8;
// channels of a block, one to a lane
constexpr int kWkvChannels = 32;
constexpr int64_t wkv_channel_blocks(int64_t channels) { return (channels + kWkvChannels - 1) / kWkvChannels; }
constexpr int kWkvForwardNumbers = 4, kWkvBackwardNumbers = 8;

// WKV in stretches of tokens; a state is the sums of one side, (numbers, C): two values, gauge and reference of a scan
// or of two
struct WkvWork {
  WkvParams op;   // grad_decay, grad_bonus: (B, stretches, C) partial sums
  float* states;  // (B, stretches, 2 sides, numbers, C): what stretches sum up by themselves, then what enters them
  Divisor channel_blocks, stretches;
};

// adds one or two of (rows, C) up over their rows, in a fixed order
struct ColumnSumsParams {
  const float* from[2];
  float* to[2];
  int count;
  int64_t rows, C;
};

// channels up to which channel mix has a kernel: sums of a warp's tokens stay in registers; up to kNarrowMix for twice
// the tokens
constexpr int kWideMix = 192, kNarrowMix = 128;
constexpr int mix_rows(int64_t channels) { return channels <= kNarrowMix ? 2 * kTile : kTile; }

// what comes between products of channel mix, number by number, in place
enum class MixStep {
  square,           // a ← max(a, 0)²
  gate,             // a ← σ(a) c
  through_squares,  // a ← max(a, 0)², b ← 2 max(a, 0) b
  through_gate      // a ← σ(a) c, b ← (1 − σ(a)) c d
};
struct MixStepParams {
  void *a, *b;
  const void *c, *d;
  int64_t count;
};

// tokens of a block of the backward, which leaves one share of the ratios' gradients
constexpr int kMixRange = 128;

// op.grad_ratios: (B, ranges, mixes, C)
struct ShiftMixWork {
  ShiftMixParams op;
  int64_t ranges;
  int vectors = 1;                                  // of channels that a block of the backward has
  bool wide;                                        // whether a thread takes 16 bytes of channels, and not one channel
  Divisor channel_vectors, group, tokens, columns;  // of a token, channels of a group, of an image, a row
};

// tokens of a block of the backward, which leaves one share of the parameters' gradients
constexpr int kNormRange = 128;
// 16-byte vectors of a token that a thread has at most; the lanes of a warp share a token
constexpr int kNormVectors = 8, kNormGradientVectors = 4;

// op.sums: (ranges, 2, C)
struct LayerNormWork {
  LayerNormParams op;
  int lanes = 1;  // that share a token, a power of two
};

// Columns of the result that a block of a walk over chunks (chunked_walk.cuh) owns, where a and b have at most `depth`:
// as many as leave the state in registers. Further blocks take the others.
constexpr int walk_part(bool half, int64_t depth) {
  return depth <= 32 ? 32 : half && depth > 64 && depth <= 128 ? 128 : 64;
}

// the same for the derivative by log γ, which has two states: columns of q and k that a block takes
constexpr int tangent_depth(bool half, int64_t depth) { return depth <= 32 ? 32 : half && depth > 64 ? 128 : 64; }
constexpr int64_t tangent_blocks(bool half, int64_t D, int64_t V) {
  const int depth = tangent_depth(half, D), part = walk_part(half, depth);
  return (D + depth - 1) / depth * ((V + part - 1) / part);
}

// what the kernels below need of a call. Rows are queries and columns keys, or the other way round.
struct WalkCall {
  int64_t batches, heads, tokens;
  int64_t stretches, per_stretch;  // tokens per stretch, a multiple of kTile
  const float* decay;              // (H); null for 1
  Side side;                       // where the tokens lie that a row sees
  bool diagonal;                   // whether it sees itself
};

// Where two walks, one per side, make a result, the first leaves its sums for the second.
enum class Walk { only, first, second };

// out_i = Σ_j γ^|i−j| X_ij y_j
//   values     X = φ(a)·φ(b), y weighted: outputs, or the gradient of v
//   gradients  X = α a·β b + α′ + β′, φ(y), times φ′(x): the gradient of q or k
struct ChunkWalkParams {
  WalkCall call;
  Walk walk;
  FeatureMap map;
  View a, b, y, out;
  int64_t depth, width;                               // columns of a and b, of y and out
  View x;                                             // gradients: what φ was taken of
  const float *row_weight, *column_weight;            // (B, H, N): α; β, or the weight of y. Null for 1
  const float *row_coefficient, *column_coefficient;  // gradients: α′, β′; null for 0
  bool companion;                                     // whether there is a normaliser
  const float* states;                     // (B·H, stretches, D·V + D): what enters them; null for one stretch
  float* partial;                          // (B, H, N, width)
  float *normaliser, *partial_normaliser;  // (B, H, N), of outputs
  float eps;
};

// d log γ of the walk's side: distances summed up beside the outputs, times the gradient of these
struct ChunkTangentParams {
  WalkCall call;
  FeatureMap map;
  View q, k, v, grad_out;
  int64_t D, V;
  const float *inverse, *grad_denominator;  // (B, H, N); null without a normaliser
  const float *states, *tangents;           // (B·H, stretches, D·V + D): what enters, and its derivative by log γ
  float* shares;                            // of head i from i · per_head on, one for every stretch and block of it
  int64_t per_head;
};

// turns what stretches sum up by themselves into what enters them, in ← γ^tokens · in + sum of the stretch before, and
// with `tangents` their derivative by log γ too
struct ChunkConnectParams {
  WalkCall call;
  int64_t numbers;
  float *states, *tangents;  // (B·H, stretches, numbers)
};

struct ChunkDecayParams {
  int64_t batches, heads, shares;
  const float* decay;           // (H)
  const float* grad_log_decay;  // (B·H, shares)
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
