// tensor checks, written once; they return the sizes that the kernels use
//
// sola_vision/ops/_checks.py holds the same rules for tensors without data; a test compares the messages.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <stdexcept>
#include <string>
#include <utility>

#include "params.h"

// B batch, N queries, M keys, H heads, D head dim, V value head dim, C channels

namespace sola {

constexpr int64_t kMaxHeadDim = 256;

inline std::string dtype_name(at::ScalarType type) { return std::string(c10::getDtypeNames(type).first); }

inline std::string shape_text(at::IntArrayRef shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + (shape.size() == 1 ? ",)" : ")");
}

inline Dtype dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return Dtype::f64;
    case at::kFloat:
      return Dtype::f32;
    case at::kBFloat16:
      return Dtype::bf16;
    default:
      return Dtype::f16;
  }
}

// by torch's name of it
inline Dtype dtype_named(const std::string& name) {
  constexpr std::pair<const char*, Dtype> known[] = {
      {"float64", Dtype::f64}, {"float32", Dtype::f32}, {"bfloat16", Dtype::bf16}, {"float16", Dtype::f16}};
  for (const auto& [text, dtype] : known) {
    if (name == text) return dtype;
  }
  throw std::invalid_argument("dtype: expected float64, float32, bfloat16 or float16, got " + name);
}

// accumulators, states and normalisers
inline at::ScalarType accumulate_type(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// `layout` reads like "(B, N, H, D)"
inline void check_tensor(const char* op, const char* name, const at::Tensor& tensor, const char* layout) {
  const int64_t rank = 1 + std::count(layout, layout + std::strlen(layout), ',');
  TORCH_CHECK_VALUE(tensor.dim() == rank, op, ": ", name, " must be ", layout, ", ", rank, " dimensions, got ",
                    tensor.dim());
  const auto type = tensor.scalar_type();
  TORCH_CHECK_VALUE(type == at::kDouble || type == at::kFloat || type == at::kBFloat16 || type == at::kHalf, op, ": ",
                    name, " must be one of float64, float32, bfloat16, float16, got ", dtype_name(type));
  TORCH_CHECK_VALUE(tensor.stride(-1) == 1 || tensor.size(-1) <= 1, op, ": ", name,
                    " must be contiguous in its last dimension, got stride ", tensor.stride(-1), "; call ", name,
                    ".contiguous() first");
}

inline void check_like(const char* op, const char* name, const at::Tensor& tensor, const char* other_name,
                       const at::Tensor& other) {
  TORCH_CHECK_VALUE(tensor.scalar_type() == other.scalar_type(), op, ": ", name, " must have the dtype of ", other_name,
                    ", ", dtype_name(other.scalar_type()), ", got ", dtype_name(tensor.scalar_type()));
  TORCH_CHECK_VALUE(tensor.device() == other.device(), op, ": ", name, " must be on the device of ", other_name, ", ",
                    other.device(), ", got ", tensor.device());
}

inline void check_size(const char* op, const char* name, const at::Tensor& tensor, int64_t axis, int64_t wanted,
                       const char* meaning) {
  TORCH_CHECK_VALUE(tensor.size(axis) == wanted, op, ": ", name, " must have size ", wanted, " in dimension ", axis,
                    " (", meaning, "), got ", tensor.size(axis));
}

inline void check_head_dim(const char* op, const char* name, const at::Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.size(3) >= 1 && tensor.size(3) <= kMaxHeadDim, op, ": ", name,
                    " must have a head dim of 1 to ", kMaxHeadDim, ", got ", tensor.size(3));
}

// q (B, N, H, D), k (B, M, H, D), v (B, M, H, V), all of one dtype and device
inline AttentionSizes check_attention(const char* op, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  check_tensor(op, "q", q, "(B, N, H, D)");
  check_tensor(op, "k", k, "(B, M, H, D)");
  check_tensor(op, "v", v, "(B, M, H, V)");
  for (const auto& [name, tensor] : {std::pair{"k", &k}, std::pair{"v", &v}}) {
    check_like(op, name, *tensor, "q", q);
    check_size(op, name, *tensor, 0, q.size(0), "the batch of q");
    check_size(op, name, *tensor, 2, q.size(2), "the heads of q");
  }
  check_size(op, "k", k, 3, q.size(3), "the head dim of q");
  check_size(op, "v", v, 1, k.size(1), "the tokens of k");
  check_head_dim(op, "q", q);
  check_head_dim(op, "v", v);
  return {q.size(0), q.size(1), k.size(1), q.size(2), q.size(3), v.size(3)};
}

inline void check_length(const char* op, const char* name, const at::Tensor& tensor, const char* letter,
                         int64_t wanted) {
  TORCH_CHECK_VALUE(tensor.dim() == 1 && tensor.size(0) == wanted, op, ": ", name, " must be (", letter, ",) with ",
                    letter, " = ", wanted, ", got ", shape_text(tensor.sizes()));
}

// a parameter is in the dtype of the sums
inline void check_parameter(const char* op, const char* name, const at::Tensor& tensor, const at::Tensor& like) {
  TORCH_CHECK_VALUE(tensor.scalar_type() == accumulate_type(like), op, ": ", name, " must be ",
                    dtype_name(accumulate_type(like)), ", got ", dtype_name(tensor.scalar_type()));
  TORCH_CHECK_VALUE(tensor.device() == like.device(), op, ": ", name, " must be on ", like.device(),
                    " like the tokens, got ", tensor.device());
}

// one with one number per head or channel
inline void check_vector(const char* op, const char* name, const at::Tensor& tensor, const char* letter, int64_t wanted,
                         const at::Tensor& like) {
  check_length(op, name, tensor, letter, wanted);
  check_parameter(op, name, tensor, like);
}

// k, v (B, N, C), decay and bonus (C)
inline void check_scan(const char* op, const at::Tensor& k, const at::Tensor& v, const at::Tensor& decay,
                       const at::Tensor& bonus) {
  check_tensor(op, "k", k, "(B, N, C)");
  check_tensor(op, "v", v, "(B, N, C)");
  check_like(op, "v", v, "k", k);
  TORCH_CHECK_VALUE(v.sizes() == k.sizes(), op, ": v must have the shape of k, ", shape_text(k.sizes()), ", got ",
                    shape_text(v.sizes()));
  check_vector(op, "decay", decay, "C", k.size(2), k);
  check_vector(op, "bonus", bonus, "C", k.size(2), k);
}

// x (B, H, W, C), ratios (K, C)
inline void check_mix(const char* op, const at::Tensor& x, const at::Tensor& ratios) {
  check_tensor(op, "x", x, "(B, H, W, C)");
  const bool fits = ratios.dim() == 2 && ratios.size(1) == x.size(3) && ratios.size(0) >= 1;
  TORCH_CHECK_VALUE(fits && ratios.size(0) <= kMostMixes, op, ": ratios must be (K, C) with K = 1 to ", kMostMixes,
                    " and C = ", x.size(3), ", got ", shape_text(ratios.sizes()));
  check_parameter(op, "ratios", ratios, x);
}

// gradients of the mixes
inline void check_mixed(const char* op, at::TensorList grads, const at::Tensor& x, const at::Tensor& ratios) {
  TORCH_CHECK_VALUE(int64_t(grads.size()) == ratios.size(0), op, ": grads must be one for each of the ", ratios.size(0),
                    " ratios, got ", grads.size());
  for (const at::Tensor& grad : grads) {
    check_like(op, "grads", grad, "x", x);
    TORCH_CHECK_VALUE(grad.sizes() == x.sizes(), op, ": grads must have the shape of x, ", shape_text(x.sizes()),
                      ", got ", shape_text(grad.sizes()));
  }
}

// x_k, x_r (B, N, C), key (M, C), value (C, M), receptance (C, C), all of one dtype and device
inline void check_channel_mix(const char* op, const at::Tensor& x_k, const at::Tensor& x_r, const at::Tensor& key,
                              const at::Tensor& value, const at::Tensor& receptance) {
  check_tensor(op, "x_k", x_k, "(B, N, C)");
  check_tensor(op, "x_r", x_r, "(B, N, C)");
  check_like(op, "x_r", x_r, "x_k", x_k);
  TORCH_CHECK_VALUE(x_r.sizes() == x_k.sizes(), op, ": x_r must have the shape of x_k, ", shape_text(x_k.sizes()),
                    ", got ", shape_text(x_r.sizes()));
  const int64_t C = x_k.size(2);
  TORCH_CHECK_VALUE(key.dim() == 2 && key.size(1) == C && key.size(0) >= 1, op,
                    ": key must be (M, C) with M of at least 1 and C = ", C, ", got ", shape_text(key.sizes()));
  const auto check_weight = [&](const char* name, const at::Tensor& weight, int64_t inputs, const char* letters) {
    TORCH_CHECK_VALUE(weight.dim() == 2 && weight.size(0) == C && weight.size(1) == inputs, op, ": ", name, " must be ",
                      letters, " = ", shape_text({C, inputs}), ", got ", shape_text(weight.sizes()));
  };
  check_weight("value", value, key.size(0), "(C, M)");
  check_weight("receptance", receptance, C, "(C, C)");
  for (const auto& [name, tensor] : {std::pair{"key", &key}, {"value", &value}, {"receptance", &receptance}}) {
    check_like(op, name, *tensor, "x_k", x_k);
  }
}

// x (B, N, C), weight and bias (C), both in the dtype of x or both in that of the sums
inline void check_layer_norm(const char* op, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                             double eps) {
  check_tensor(op, "x", x, "(B, N, C)");
  check_length(op, "weight", weight, "C", x.size(2));
  const auto type = weight.scalar_type(), sums = accumulate_type(x);
  TORCH_CHECK_VALUE(type == x.scalar_type() || type == sums, op, ": weight must be in the dtype of x, ",
                    dtype_name(x.scalar_type()), ", or of its sums, ", dtype_name(sums), ", got ", dtype_name(type));
  TORCH_CHECK_VALUE(weight.device() == x.device(), op, ": weight must be on the device of x, ", x.device(), ", got ",
                    weight.device());
  check_length(op, "bias", bias, "C", x.size(2));
  check_like(op, "bias", bias, "weight", weight);
  TORCH_CHECK_VALUE(eps >= 0, op, ": eps must be at least 0, got ", eps);
}

// distance of the rows of (B, N, C), where they have one. The stride of a single token says nothing.
inline int64_t row_stride(const at::Tensor& x) { return x.size(1) > 1 ? x.stride(1) : x.stride(0); }

// (B, N, C) as rows; a copy where rows don't follow each other at one distance
inline at::Tensor as_rows(const at::Tensor& x) {
  const bool regular = x.size(0) == 1 || x.size(1) == 1 || x.stride(0) == x.size(1) * x.stride(1);
  return regular && (x.stride(2) == 1 || x.size(2) == 1) ? x : x.contiguous();
}

inline Rows rows_of(const at::Tensor& x) { return {x.data_ptr(), row_stride(x)}; }

inline ChannelMixParams channel_mix_params(const at::Tensor& x_k, const at::Tensor& x_r, const at::Tensor& key,
                                           const at::Tensor& value, const at::Tensor& receptance,
                                           const at::Tensor& out) {
  ChannelMixParams p{};
  p.N = x_k.size(0) * x_k.size(1);
  p.C = x_k.size(2);
  p.M = key.size(0);
  p.x_k = rows_of(x_k);
  p.x_r = rows_of(x_r);
  p.out = rows_of(out);
  p.key = key.data_ptr();
  p.value = value.data_ptr();
  p.receptance = receptance.data_ptr();
  return p;
}

// parameters are contiguous
inline LayerNormParams layer_norm_params(const at::Tensor& x, const at::Tensor& weight, double eps) {
  LayerNormParams p{};
  p.N = x.size(0) * x.size(1);
  p.C = x.size(2);
  p.x = rows_of(x);
  p.weight = weight.data_ptr();
  p.wide = weight.scalar_type() != x.scalar_type();
  p.eps = eps;
  return p;
}

// (batch, token, head, channel)
inline View view_of(const at::Tensor& tensor) {
  return {tensor.data_ptr(), tensor.stride(0), tensor.stride(1), tensor.dim() == 4 ? tensor.stride(2) : 0};
}

// `mixed`: outputs, or their gradients; ratios are contiguous
inline ShiftMixParams mix_params(const at::Tensor& x, const at::Tensor& ratios, at::TensorList mixed) {
  ShiftMixParams p{};
  p.B = x.size(0);
  p.H = x.size(1);
  p.W = x.size(2);
  p.C = x.size(3);
  p.mixes = int(ratios.size(0));
  p.x = view_of(x);
  for (int i = 0; i < p.mixes; ++i) p.mixed[i] = view_of(mixed[i]);
  p.ratios = ratios.data_ptr();
  return p;
}

// a gradient may come expanded (stride 0) in any dimension; the kernels want the last one contiguous
inline at::Tensor dense_last(const at::Tensor& tensor) {
  return tensor.stride(-1) == 1 || tensor.size(-1) <= 1 ? tensor : tensor.contiguous();
}

}  // namespace sola
