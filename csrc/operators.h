// operators by name, with the types of their functions: what gradients, autocast and refusals have in common
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>

namespace sola {

using at::Tensor;

inline constexpr const char* kForwardOps[] = {
    "softmax_attention", "linear_attention", "chunked_linear_attention", "wkv", "shift_mix",
    "layer_norm",        "channel_mix"};

template <size_t size>
struct Name {
  char text[size];
  constexpr Name(const char (&literal)[size]) { std::copy_n(literal, size, text); }
};

// looked up once for every name
template <class Signature, Name name>
const c10::TypedOperatorHandle<Signature>& find() {
  static const auto handle = c10::Dispatcher::singleton().findSchemaOrThrow(name.text, "").template typed<Signature>();
  return handle;
}

using SoftmaxForward = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, double, bool);
using LinearForward = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, c10::string_view,
                                                         bool, double);
using ChunkedForward = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&,
                                                  const std::optional<Tensor>&, c10::string_view, bool, bool, double,
                                                  int64_t);
using WkvForward = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&, bool);
using MixForward = std::vector<Tensor>(const Tensor&, const Tensor&);
using NormForward = Tensor(const Tensor&, const Tensor&, const Tensor&, double);
using ChannelForward = Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&);

}  // namespace sola
