// PyTorch's fused kernels behind our layout: views going in, views and copies of what doesn't fit coming out
//
// The ops are found by name when first called, which checks their signatures: importing needs none of them, so one
// build serves every torch from 2.11 on, with CUDA or without.

#include "cuda/softmax_sdpa.h"

#include <ATen/Context.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <limits>

namespace sola::cuda {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

// of flash and cuDNN: out, logsumexp, and what only their own backward needs
using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, c10::SymInt, c10::SymInt, Tensor, Tensor, Tensor>;
using Flash = Outputs(const Tensor& q, const Tensor& k, const Tensor& v, double dropout, bool causal, bool mask,
                      std::optional<double> scale);
using Cudnn = Outputs(const Tensor& q, const Tensor& k, const Tensor& v, const Optional& bias, bool logsumexp,
                      double dropout, bool causal, bool mask, std::optional<double> scale);
using Efficient = std::tuple<Tensor, Tensor, Tensor, Tensor>(const Tensor& q, const Tensor& k, const Tensor& v,
                                                             const Optional& bias, bool logsumexp, double dropout,
                                                             bool causal, std::optional<double> scale);

template <class Signature>
const c10::TypedOperatorHandle<Signature>& find(const char* name) {
  static const auto handle = c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
  return handle;
}

// out (B, H, N, V) and logsumexp as the backend leaves them
std::pair<Tensor, Tensor> run(SoftmaxBackend backend, const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                              bool causal) {
  if (backend == SoftmaxBackend::flash) {
    auto found = find<Flash>("aten::_scaled_dot_product_flash_attention").call(q, k, v, 0.0, causal, false, scale);
    return {std::get<0>(found), std::get<1>(found)};
  }
  if (backend == SoftmaxBackend::cudnn) {
    auto found = find<Cudnn>("aten::_scaled_dot_product_cudnn_attention")
                     .call(q, k, v, std::nullopt, true, 0.0, causal, false, scale);
    return {std::get<0>(found), std::get<1>(found)};
  }
  auto found = find<Efficient>("aten::_scaled_dot_product_efficient_attention")
                   .call(q, k, v, std::nullopt, true, 0.0, causal, scale);
  return {std::get<0>(found), std::get<1>(found)};
}

// dimensions of one entry have strides that mean nothing
void look_at(const Tensor& tensor, SoftmaxCall& call) {
  const int64_t bytes = tensor.element_size();
  int64_t reach = 0;
  call.aligned = call.aligned && reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 16 == 0;
  for (int64_t axis = 0; axis < 3; ++axis) {
    const int64_t size = tensor.size(axis), stride = tensor.stride(axis);
    if (size <= 1) continue;
    call.aligned = call.aligned && stride * bytes % 16 == 0;
    call.expanded = call.expanded || stride == 0;
    if (axis > 0) reach += (size - 1) * stride;
  }
  call.far = call.far || reach > std::numeric_limits<int32_t>::max();
}

}  // namespace

SoftmaxCall softmax_call(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionSizes& size, double scale,
                         bool causal) {
  SoftmaxCall call;
  call.capability = size_of(q.device()).capability;
  call.dtype = dtype_of(q);
  call.size = size;
  call.scale = scale;
  call.causal = causal;
  for (const Tensor* tensor : {&q, &k, &v}) look_at(*tensor, call);
  const auto& context = at::globalContext();
  const auto switched_off = [&](SoftmaxBackend backend, bool on) { call.off[static_cast<int>(backend)] = !on; };
  switched_off(SoftmaxBackend::flash, context.userEnabledFlashSDP());
  switched_off(SoftmaxBackend::efficient, context.userEnabledMemEfficientSDP());
  // PyTorch doesn't count it among its deterministic algorithms
  switched_off(SoftmaxBackend::cudnn, context.userEnabledCuDNNSDP() && !context.deterministicAlgorithms());
  return call;
}

std::tuple<Tensor, Tensor> sdpa_forward(SoftmaxBackend backend, const SoftmaxCall& call, const Tensor& q,
                                        const Tensor& k, const Tensor& v) {
  const std::string problem = refusal(backend, call);
  TORCH_CHECK_VALUE(problem.empty(), "softmax_attention: the backend ", name_of(backend),
                    " can't take this call: ", problem, "; softmax_backend(\"auto\") falls back to one that can");
  const auto heads_first = [](const Tensor& tensor) { return tensor.transpose(1, 2); };
  auto [out, logsumexp] = run(backend, heads_first(q), heads_first(k), heads_first(v), call.scale, call.causal);
  // cuDNN has a dimension of one more, and the efficient kernels more rows than there are queries
  if (logsumexp.dim() == 4) logsumexp = logsumexp.squeeze(3);
  return {out.transpose(1, 2).contiguous(), logsumexp.narrow(2, 0, call.size.N).contiguous()};
}

}  // namespace sola::cuda
