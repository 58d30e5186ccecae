// autocast: the token tensors in the lower precision, parameters as they are

#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "operators.h"
#include "without_autocast.h"

namespace sola {
namespace {

Tensor lower(const Tensor& tensor) {
  const auto device = tensor.device().type();
  return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), tensor, device);
}

std::tuple<Tensor, Tensor> softmax_autocast(const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                                            bool causal) {
  const auto guard = without_autocast();
  return find<SoftmaxForward, "sola::softmax_attention">().call(lower(q), lower(k), lower(v), scale, causal);
}

std::tuple<Tensor, Tensor, Tensor> linear_autocast(const Tensor& q, const Tensor& k, const Tensor& v,
                                                   c10::string_view feature_map, bool normalize, double eps) {
  const auto guard = without_autocast();
  return find<LinearForward, "sola::linear_attention">().call(lower(q), lower(k), lower(v), feature_map, normalize,
                                                              eps);
}

std::tuple<Tensor, Tensor> chunked_autocast(const Tensor& q, const Tensor& k, const Tensor& v,
                                            const std::optional<Tensor>& decay, c10::string_view feature_map,
                                            bool causal, bool normalize, double eps, int64_t chunk) {
  const auto guard = without_autocast();
  return find<ChunkedForward, "sola::chunked_linear_attention">().call(lower(q), lower(k), lower(v), decay, feature_map,
                                                                       causal, normalize, eps, chunk);
}

std::tuple<Tensor, Tensor> wkv_autocast(const Tensor& k, const Tensor& v, const Tensor& decay, const Tensor& bonus,
                                        bool save) {
  const auto guard = without_autocast();
  return find<WkvForward, "sola::wkv">().call(lower(k), lower(v), decay, bonus, save);
}

std::vector<Tensor> mix_autocast(const Tensor& x, const Tensor& ratios) {
  const auto guard = without_autocast();
  return find<MixForward, "sola::shift_mix">().call(lower(x), ratios);
}

Tensor channel_autocast(const Tensor& x_k, const Tensor& x_r, const Tensor& key, const Tensor& value,
                        const Tensor& receptance) {
  const auto guard = without_autocast();
  return find<ChannelForward, "sola::channel_mix">().call(lower(x_k), lower(x_r), lower(key), lower(value),
                                                          lower(receptance));
}

// in float32, as PyTorch's on CUDA; on a CPU both leave tokens in their dtype
Tensor norm_autocast(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  const auto guard = without_autocast();
  const auto wide = [](const Tensor& tensor) {
    return at::autocast::cached_cast(at::kFloat, tensor, tensor.device().type());
  };
  return find<NormForward, "sola::layer_norm">().call(wide(x), wide(weight), wide(bias), eps);
}

void register_all(torch::Library& m) {
  m.impl("softmax_attention", &softmax_autocast);
  m.impl("linear_attention", &linear_autocast);
  m.impl("chunked_linear_attention", &chunked_autocast);
  m.impl("wkv", &wkv_autocast);
  m.impl("shift_mix", &mix_autocast);
  m.impl("channel_mix", &channel_autocast);
}

}  // namespace

TORCH_LIBRARY_IMPL(sola, AutocastCPU, m) { register_all(m); }
TORCH_LIBRARY_IMPL(sola, AutocastCUDA, m) {
  register_all(m);
  m.impl("layer_norm", &norm_autocast);
}

}  // namespace sola
