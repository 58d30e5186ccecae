// softmax attention's forward by the fused kernels of PyTorch's scaled_dot_product_attention
#pragma once

#include "cuda/host.h"
#include "softmax_routes.h"

namespace sola::cuda {

// what the choice of a route wants to know of a call
SoftmaxCall softmax_call(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionSizes& size,
                         double scale, bool causal);

// Outputs as of our own kernels: out (B, N, H, V) and logsumexp (B, H, N), natural logarithm, float32, both contiguous.
// A call that the backend can't take is an error with the reason.
std::tuple<at::Tensor, at::Tensor> sdpa_forward(SoftmaxBackend backend, const SoftmaxCall& call, const at::Tensor& q,
                                                const at::Tensor& k, const at::Tensor& v);

}  // namespace sola::cuda
