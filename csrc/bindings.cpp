// every op schema, and the pybind11 module for what is no tensor op

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>

#include "build_info.h"
#include "cpu/rates.h"

namespace py = pybind11;

TORCH_LIBRARY(sola, m) {
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
  // decay (H) or None -> out (B, N, H, V), normaliser (B, H, N)
  m.def(
      "chunked_linear_attention(Tensor q, Tensor k, Tensor v, Tensor? decay, str feature_map,"
      " bool causal, bool normalize, float eps, int chunk) -> (Tensor out, Tensor normaliser)");
  m.def(
      "chunked_linear_attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor? decay,"
      " Tensor out, Tensor normaliser, str feature_map, bool causal, bool normalize, float eps, int chunk)"
      " -> (Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_decay)");
  // k, v (B, N, C), decay, bonus (C) -> out (B, N, C), saved (S, B, N, C) in the dtype of the sums: the logarithm of
  // the normaliser and, where out has been rounded to half precision, out before that; nothing unless `save`
  m.def("wkv(Tensor k, Tensor v, Tensor decay, Tensor bonus, bool save=False) -> (Tensor out, Tensor saved)");
  m.def(
      "wkv_backward(Tensor grad_out, Tensor k, Tensor v, Tensor decay, Tensor bonus, Tensor out, Tensor saved)"
      " -> (Tensor grad_k, Tensor grad_v, Tensor grad_decay, Tensor grad_bonus)");
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "SoLA's compiled operators; importing it registers torch.ops.sola";
  m.def("build_info", &sola::build_info, "what was built and what was chosen at load");
  m.def("backends", &sola::backends, "(kind, name, chosen, why not) of every way to run, best first");
  m.def("gemm_rate", &sola::gemm_rate, py::arg("dtype"), py::arg("seconds"), py::call_guard<py::gil_scoped_release>(),
        "FLOP/s of one thread on GEMM tiles in its caches, the best within the time");
  m.def("exp_rate", &sola::exp_rate, py::arg("seconds"), py::call_guard<py::gil_scoped_release>(),
        "float32 exponentials per second of one thread, the best within the time");
  m.def("cuda_devices", &sola::cuda_devices, "properties of the CUDA devices that this build can see");
}
