// the kernels as the host sees them: plain functions that start work on a stream and return a cudaError_t
#pragma once

#include "cuda/kernel_params.h"

namespace sola::cuda {

int launch_gather(const GatherParams& p, Dtype dtype, void* stream);
int launch_reduce(const ReduceParams& p, void* stream);
int launch_read(const ReadParams& p, Read kind, Dtype dtype, void* stream);
int launch_wide_read(const ReadParams& p, Read kind, Dtype dtype, void* stream);

// on compute capability 9.0 or later
int launch_cluster_forward(const ClusterParams& p, Dtype dtype, void* stream);
int launch_cluster_backward(const ClusterBackwardParams& p, Dtype dtype, void* stream);

// rows: queries of a block, kTile or, of half types with head dims up to kWideSoftmax, twice that
int launch_softmax_forward(const SoftmaxParams& p, int rows, Dtype dtype, void* stream);
// of 16-bit types on compute capability 9.0, with a key at least, head dims up to kWideSoftmax, and rows of 16 bytes
int launch_hopper_softmax_forward(const SoftmaxParams& p, Dtype dtype, void* stream);
// what the backward wants of queries; comes before it
int launch_softmax_save(const SoftmaxBackwardParams& p, Dtype dtype, void* stream);
int launch_hopper_softmax_backward(const SoftmaxBackwardParams& p, Dtype dtype, void* stream);
int launch_softmax_backward(const SoftmaxBackwardParams& p, Dtype dtype, void* stream);

int launch_wkv_forward(const WkvWork& p, Dtype dtype, void* stream);
int launch_wkv_backward(const WkvWork& p, Dtype dtype, void* stream);
// forward, of 16-bit types and up to kWideMix channels, with rows and weights in multiples of 16 bytes
int launch_channel_mix(const ChannelMixParams& p, Dtype dtype, void* stream);
// on compute capability 9.0
int launch_hopper_channel_mix(const ChannelMixParams& p, Dtype dtype, void* stream);
int launch_mix_step(const MixStepParams& p, MixStep step, Dtype dtype, void* stream);
// channels in multiples of 16 bytes, at most kNormVectors (backward kNormGradientVectors) for every lane of a warp, and
// rows that begin at such
int launch_layer_norm(const LayerNormParams& p, Dtype dtype, void* stream);
int launch_layer_norm_backward(const LayerNormParams& p, Dtype dtype, void* stream);
int launch_shift_mix(ShiftMixWork work, Dtype dtype, void* stream);
int launch_shift_mix_backward(ShiftMixWork work, Dtype dtype, void* stream);
// also adds up what shift_mix_backward and wkv_backward leave of parameters
int launch_column_sums(const ColumnSumsParams& p, void* stream);

int launch_chunk_connect(const ChunkConnectParams& p, void* stream);
int launch_chunk_values(const ChunkWalkParams& p, Dtype dtype, void* stream);
int launch_chunk_gradients(const ChunkWalkParams& p, Dtype dtype, void* stream);
int launch_chunk_tangent(const ChunkTangentParams& p, Dtype dtype, void* stream);
int launch_chunk_denominators(const ChunkDenominatorParams& p, Dtype dtype, void* stream);
int launch_chunk_decay(const ChunkDecayParams& p, void* stream);

// what an error means
const char* error_text(int error);

}  // namespace sola::cuda
