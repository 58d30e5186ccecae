// gradients
//
// C++ autograd nodes: they cost a few microseconds less per call than Python ones, and torch.compile traces through
// them into the backward ops just as well.

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "operators.h"

namespace sola {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

bool needs_graph(std::initializer_list<const Tensor*> inputs) {
  if (!at::GradMode::is_enabled()) return false;
  return std::any_of(inputs.begin(), inputs.end(), [](const Tensor* t) { return t->defined() && t->requires_grad(); });
}

struct Named {
  const char* name;
  const Tensor& tensor;
};

// an op without a rule for tangents would drop them, and a derivative would silently be zero
void refuse_tangents(const char* op, std::initializer_list<Named> inputs) {
  for (const auto& [name, tensor] : inputs) {
    TORCH_CHECK_NOT_IMPLEMENTED(!tensor.defined() || !tensor._fw_grad(0).defined(), op,
                                ": forward-mode differentiation (torch.func.jvp, torch.autograd.forward_ad) is not ",
                                "implemented, and ", name, " has a tangent; use backward() or torch.autograd.grad");
  }
}

// a result as a backward keeps it: the same memory and version, without a gradient of its own. A checkpoint throws out
// of save_for_backward once it has computed enough again, and a node that held its own result then would never die.
Tensor without_node(const Tensor& out) { return out.tensor_data(); }

// ---- softmax attention

using SoftmaxBackward = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                                           const Tensor&, const Tensor&, double, bool);

std::tuple<Tensor, Tensor> softmax_forward(const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                                           bool causal) {
  at::AutoDispatchBelowADInplaceOrView below;
  return find<SoftmaxForward, "sola::softmax_attention">().call(q, k, v, scale, causal);
}

struct SoftmaxNode : Function<SoftmaxNode> {
  static variable_list forward(AutogradContext* context, const Tensor& q, const Tensor& k, const Tensor& v,
                               double scale, bool causal) {
    auto [out, logsumexp] = softmax_forward(q, k, v, scale, causal);
    context->save_for_backward({q, k, v, without_node(out), logsumexp});
    context->saved_data["scale"] = scale;
    context->saved_data["causal"] = causal;
    context->mark_non_differentiable({logsumexp});
    return {out, logsumexp};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    auto [q, k, v] = find<SoftmaxBackward, "sola::softmax_attention_backward">().call(
        grads[0], saved[0], saved[1], saved[2], saved[3], saved[4], context->saved_data["scale"].toDouble(),
        context->saved_data["causal"].toBool());
    return {q, k, v, Tensor(), Tensor()};
  }
};

std::tuple<Tensor, Tensor> softmax_autograd(const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                                            bool causal) {
  refuse_tangents("softmax_attention", {{"q", q}, {"k", k}, {"v", v}});
  if (!needs_graph({&q, &k, &v})) return softmax_forward(q, k, v, scale, causal);
  auto outputs = SoftmaxNode::apply(q, k, v, scale, causal);
  return {outputs[0], outputs[1]};
}

// ---- linear attention, one global state

using LinearBackward = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                                          const Tensor&, const Tensor&, c10::string_view, bool, double);

std::tuple<Tensor, Tensor, Tensor> linear_forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                                  c10::string_view feature_map, bool normalize, double eps) {
  at::AutoDispatchBelowADInplaceOrView below;
  return find<LinearForward, "sola::linear_attention">().call(q, k, v, feature_map, normalize, eps);
}

struct LinearNode : Function<LinearNode> {
  static variable_list forward(AutogradContext* context, const Tensor& q, const Tensor& k, const Tensor& v,
                               const std::string& feature_map, bool normalize, double eps) {
    auto [out, state, key_sum] = linear_forward(q, k, v, feature_map, normalize, eps);
    context->save_for_backward({q, k, v, state, key_sum});
    context->saved_data["feature_map"] = feature_map;
    context->saved_data["normalize"] = normalize;
    context->saved_data["eps"] = eps;
    context->mark_non_differentiable({state, key_sum});
    return {out, state, key_sum};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    auto [q, k, v] = find<LinearBackward, "sola::linear_attention_backward">().call(
        grads[0], saved[0], saved[1], saved[2], saved[3], saved[4], context->saved_data["feature_map"].toStringRef(),
        context->saved_data["normalize"].toBool(), context->saved_data["eps"].toDouble());
    return {q, k, v, Tensor(), Tensor(), Tensor()};
  }
};

std::tuple<Tensor, Tensor, Tensor> linear_autograd(const Tensor& q, const Tensor& k, const Tensor& v,
                                                   c10::string_view feature_map, bool normalize, double eps) {
  refuse_tangents("linear_attention", {{"q", q}, {"k", k}, {"v", v}});
  if (!needs_graph({&q, &k, &v})) return linear_forward(q, k, v, feature_map, normalize, eps);
  auto outputs = LinearNode::apply(q, k, v, std::string(feature_map), normalize, eps);
  return {outputs[0], outputs[1], outputs[2]};
}

// ---- linear attention, chunked

using ChunkedBackward = std::tuple<Tensor, Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&,
                                                                   const Tensor&, const std::optional<Tensor>&,
                                                                   const Tensor&, const Tensor&, c10::string_view, bool,
                                                                   bool, double, int64_t, bool);

std::tuple<Tensor, Tensor> chunked_forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                           const std::optional<Tensor>& decay, c10::string_view feature_map,
                                           bool causal, bool normalize, double eps, int64_t chunk) {
  at::AutoDispatchBelowADInplaceOrView below;
  return find<ChunkedForward, "sola::chunked_linear_attention">().call(q, k, v, decay, feature_map, causal, normalize,
                                                                       eps, chunk);
}

struct ChunkedNode : Function<ChunkedNode> {
  static variable_list forward(AutogradContext* context, const Tensor& q, const Tensor& k, const Tensor& v,
                               const std::optional<Tensor>& decay, const std::string& feature_map, bool causal,
                               bool normalize, double eps, int64_t chunk) {
    auto [out, normaliser] = chunked_forward(q, k, v, decay, feature_map, causal, normalize, eps, chunk);
    context->save_for_backward({q, k, v, decay.value_or(Tensor()), without_node(out), normaliser});
    context->mark_non_differentiable({normaliser});
    context->saved_data["feature_map"] = feature_map;
    context->saved_data["causal"] = causal;
    context->saved_data["normalize"] = normalize;
    context->saved_data["eps"] = eps;
    context->saved_data["chunk"] = chunk;
    context->saved_data["decay_grad"] = decay && decay->requires_grad();
    return {out, normaliser};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    auto& data = context->saved_data;
    const auto decay = saved[3].defined() ? std::optional<Tensor>(saved[3]) : std::nullopt;
    auto [q, k, v, grad_decay] = find<ChunkedBackward, "sola::chunked_linear_attention_backward">().call(
        grads[0], saved[0], saved[1], saved[2], decay, saved[4], saved[5], data["feature_map"].toStringRef(),
        data["causal"].toBool(), data["normalize"].toBool(), data["eps"].toDouble(), data["chunk"].toInt(),
        data["decay_grad"].toBool());
    if (!data["decay_grad"].toBool()) grad_decay = Tensor();
    return {q, k, v, grad_decay, Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

std::tuple<Tensor, Tensor> chunked_autograd(const Tensor& q, const Tensor& k, const Tensor& v,
                                            const std::optional<Tensor>& decay, c10::string_view feature_map,
                                            bool causal, bool normalize, double eps, int64_t chunk) {
  const Tensor rate = decay.value_or(Tensor());
  refuse_tangents("linear_attention", {{"q", q}, {"k", k}, {"v", v}, {"decay", rate}});
  if (!needs_graph({&q, &k, &v, &rate})) {
    return chunked_forward(q, k, v, decay, feature_map, causal, normalize, eps, chunk);
  }
  auto outputs = ChunkedNode::apply(q, k, v, decay, std::string(feature_map), causal, normalize, eps, chunk);
  return {outputs[0], outputs[1]};
}

// ---- WKV

using WkvBackward = std::tuple<Tensor, Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&,
                                                               const Tensor&, const Tensor&, const Tensor&,
                                                               const Tensor&);

std::tuple<Tensor, Tensor> wkv_forward(const Tensor& k, const Tensor& v, const Tensor& decay, const Tensor& bonus,
                                       bool save) {
  at::AutoDispatchBelowADInplaceOrView below;
  return find<WkvForward, "sola::wkv">().call(k, v, decay, bonus, save);
}

struct WkvNode : Function<WkvNode> {
  static variable_list forward(AutogradContext* context, const Tensor& k, const Tensor& v, const Tensor& decay,
                               const Tensor& bonus) {
    auto [out, kept] = wkv_forward(k, v, decay, bonus, true);
    context->save_for_backward({k, v, decay, bonus, without_node(out), kept});
    context->mark_non_differentiable({kept});
    return {out, kept};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    auto [k, v, decay, bonus] = find<WkvBackward, "sola::wkv_backward">().call(grads[0], saved[0], saved[1], saved[2],
                                                                               saved[3], saved[4], saved[5]);
    return {k, v, decay, bonus};
  }
};

std::tuple<Tensor, Tensor> wkv_autograd(const Tensor& k, const Tensor& v, const Tensor& decay, const Tensor& bonus,
                                        bool save) {
  refuse_tangents("wkv", {{"k", k}, {"v", v}, {"decay", decay}, {"bonus", bonus}});
  if (!needs_graph({&k, &v, &decay, &bonus})) return wkv_forward(k, v, decay, bonus, save);
  auto outputs = WkvNode::apply(k, v, decay, bonus);
  return {outputs[0], outputs[1]};
}

// ---- mixes with shifted tokens

using MixBackward = std::tuple<Tensor, Tensor>(at::TensorList, const Tensor&, const Tensor&);

std::vector<Tensor> mix_forward(const Tensor& x, const Tensor& ratios) {
  at::AutoDispatchBelowADInplaceOrView below;
  return find<MixForward, "sola::shift_mix">().call(x, ratios);
}

struct MixNode : Function<MixNode> {
  static variable_list forward(AutogradContext* context, const Tensor& x, const Tensor& ratios) {
    context->save_for_backward({x, ratios});
    return mix_forward(x, ratios);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    auto [x, ratios] = find<MixBackward, "sola::shift_mix_backward">().call(grads, saved[0], saved[1]);
    return {x, ratios};
  }
};

std::vector<Tensor> mix_autograd(const Tensor& x, const Tensor& ratios) {
  refuse_tangents("shift_mix", {{"x", x}, {"ratios", ratios}});
  if (!needs_graph({&x, &ratios})) return mix_forward(x, ratios);
  return MixNode::apply(x, ratios);
}

// ---- layer norm

using NormBackward = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                                        double);

Tensor norm_forward(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  at::AutoDispatchBelowADInplaceOrView below;
  return find<NormForward, "sola::layer_norm">().call(x, weight, bias, eps);
}

struct NormNode : Function<NormNode> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& weight, const Tensor& bias,
                        double eps) {
    context->save_for_backward({x, weight, bias});
    context->saved_data["eps"] = eps;
    return norm_forward(x, weight, bias, eps);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    auto [x, weight, bias] = find<NormBackward, "sola::layer_norm_backward">().call(
        grads[0], saved[0], saved[1], saved[2], context->saved_data["eps"].toDouble());
    return {x, weight, bias, Tensor()};
  }
};

Tensor norm_autograd(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  refuse_tangents("layer_norm", {{"x", x}, {"weight", weight}, {"bias", bias}});
  if (!needs_graph({&x, &weight, &bias})) return norm_forward(x, weight, bias, eps);
  return NormNode::apply(x, weight, bias, eps);
}

// ---- channel mix

using ChannelBackward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&,
                                                                           const Tensor&, const Tensor&, const Tensor&,
                                                                           const Tensor&);

Tensor channel_forward(const Tensor& x_k, const Tensor& x_r, const Tensor& key, const Tensor& value,
                       const Tensor& receptance) {
  at::AutoDispatchBelowADInplaceOrView below;
  return find<ChannelForward, "sola::channel_mix">().call(x_k, x_r, key, value, receptance);
}

struct ChannelNode : Function<ChannelNode> {
  static Tensor forward(AutogradContext* context, const Tensor& x_k, const Tensor& x_r, const Tensor& key,
                        const Tensor& value, const Tensor& receptance) {
    const Tensor out = channel_forward(x_k, x_r, key, value, receptance);
    context->save_for_backward({x_k, x_r, key, value, receptance, without_node(out)});
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    auto [x_k, x_r, key, value, receptance] = find<ChannelBackward, "sola::channel_mix_backward">().call(
        grads[0], saved[0], saved[1], saved[2], saved[3], saved[4], saved[5]);
    return {x_k, x_r, key, value, receptance};
  }
};

Tensor channel_autograd(const Tensor& x_k, const Tensor& x_r, const Tensor& key, const Tensor& value,
                        const Tensor& receptance) {
  refuse_tangents("channel_mix",
                  {{"x_k", x_k}, {"x_r", x_r}, {"key", key}, {"value", value}, {"receptance", receptance}});
  if (!needs_graph({&x_k, &x_r, &key, &value, &receptance})) {
    return channel_forward(x_k, x_r, key, value, receptance);
  }
  return ChannelNode::apply(x_k, x_r, key, value, receptance);
}

}  // namespace

TORCH_LIBRARY_IMPL(sola, Autograd, m) {
  m.impl("softmax_attention", &softmax_autograd);
  m.impl("linear_attention", &linear_autograd);
  m.impl("chunked_linear_attention", &chunked_autograd);
  m.impl("wkv", &wkv_autograd);
  m.impl("shift_mix", &mix_autograd);
  m.impl("layer_norm", &norm_autograd);
  m.impl("channel_mix", &channel_autograd);
  // a second derivative is an error, never silently zero
  for (const char* op : kForwardOps) {
    m.impl((std::string(op) + "_backward").c_str(), torch::autograd::autogradNotImplementedFallback());
  }
}

}  // namespace sola
