// every op schema, written once
#pragma once

#include <torch/library.h>

namespace sola {

inline void define_schemas(torch::Library& m) {
  // q (B, N, H, D), k (B, M, H, D), v (B, M, H, V) -> out (B, N, H, V), logsumexp (B, H, N)
  m.def(
      "softmax_attention(Tensor q, Tensor k, Tensor v, float scale, bool causal)"
      " -> (Tensor out, Tensor logsumexp)");
  m.def(
      "softmax_attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out,"
      " Tensor logsumexp, float scale, bool causal) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v)");
  // -> out (B, N, H, V), state (B, H, D, V), key_sum (B, H, D)
  m.def(
      "linear_attention(Tensor q, Tensor k, Tensor v, str feature_map, bool normalize, float eps)"
      " -> (Tensor out, Tensor state, Tensor key_sum)");
  m.def(
      "linear_attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor state,"
      " Tensor key_sum, str feature_map, bool normalize, float eps)"
      " -> (Tensor grad_q, Tensor grad_k, Tensor grad_v)");
  // decay (H) or None -> out (B, N, H, V), normaliser (B, H, N); grad_decay is empty without decay or `decay_grad`
  m.def(
      "chunked_linear_attention(Tensor q, Tensor k, Tensor v, Tensor? decay, str feature_map,"
      " bool causal, bool normalize, float eps, int chunk) -> (Tensor out, Tensor normaliser)");
  m.def(
      "chunked_linear_attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor? decay,"
      " Tensor out, Tensor normaliser, str feature_map, bool causal, bool normalize, float eps, int chunk,"
      " bool decay_grad=True) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_decay)");
  // k, v (B, N, C), decay, bonus (C) -> out (B, N, C), saved (S, B, N, C) in the dtype of the sums: the logarithm of
  // the normaliser and, where out has been rounded to half precision, out before that; nothing unless `save`
  m.def("wkv(Tensor k, Tensor v, Tensor decay, Tensor bonus, bool save=False) -> (Tensor out, Tensor saved)");
  m.def(
      "wkv_backward(Tensor grad_out, Tensor k, Tensor v, Tensor decay, Tensor bonus, Tensor out, Tensor saved)"
      " -> (Tensor grad_k, Tensor grad_v, Tensor grad_decay, Tensor grad_bonus)");
  // x (B, H, W, C), ratios (K, C) -> K times (B, H, W, C)
  m.def("shift_mix(Tensor x, Tensor ratios) -> Tensor[]");
  m.def("shift_mix_backward(Tensor[] grads, Tensor x, Tensor ratios) -> (Tensor grad_x, Tensor grad_ratios)");
  // x (B, N, C), weight, bias (C) -> out (B, N, C)
  m.def("layer_norm(Tensor x, Tensor weight, Tensor bias, float eps) -> Tensor");
  m.def(
      "layer_norm_backward(Tensor grad_out, Tensor x, Tensor weight, Tensor bias, float eps)"
      " -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)");
  // x_k, x_r (B, N, C), key (M, C), value (C, M), receptance (C, C) -> out (B, N, C)
  m.def("channel_mix(Tensor x_k, Tensor x_r, Tensor key, Tensor value, Tensor receptance) -> Tensor");
  m.def(
      "channel_mix_backward(Tensor grad_out, Tensor x_k, Tensor x_r, Tensor key, Tensor value, Tensor receptance,"
      " Tensor out) -> (Tensor grad_x_k, Tensor grad_x_r, Tensor grad_key, Tensor grad_value,"
      " Tensor grad_receptance)");
}

}  // namespace sola
