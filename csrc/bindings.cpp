// the library of ops, and the pybind11 module for what is no tensor op

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <iterator>

#include "build_info.h"
#include "cpu/held.h"
#include "cpu/rates.h"
#include "cuda_features.h"
#include "schemas.h"
#include "softmax_bindings.h"

namespace py = pybind11;

TORCH_LIBRARY(sola, m) { sola::define_schemas(m); }

PYBIND11_MODULE(_C, m) {
  m.doc() = "SoLA's compiled operators; importing it registers torch.ops.sola";
  m.def("build_info", &sola::build_info, "what was built and what was chosen at load");
  m.def("backends", &sola::backends, "(kind, name, chosen, why not) of every way to run, best first");
  m.def("gemm_rate", &sola::gemm_rate, py::arg("dtype"), py::arg("seconds"), py::call_guard<py::gil_scoped_release>(),
        "FLOP/s of one thread on GEMM tiles in its caches, the best within the time");
  m.def("exp_rate", &sola::exp_rate, py::arg("seconds"), py::call_guard<py::gil_scoped_release>(),
        "float32 exponentials per second of one thread, the best within the time");
  m.def("channel_mix_held", &sola::channel_mix_held, py::arg("tokens"), py::arg("channels"), py::arg("hidden"),
        py::arg("dtype"), "bytes that a call on the CPU holds beside its arguments and its result");
  m.def("channel_mix_backward_held", &sola::channel_mix_backward_held, py::arg("tokens"), py::arg("channels"),
        py::arg("hidden"), py::arg("dtype"),
        "bytes beside arguments and results, where some of these aren't there yet, and where all are");
  m.def("cuda_devices", &sola::cuda_devices, "properties of the CUDA devices that this build can see");
  m.attr("CUDA_FEATURES") =
      py::tuple(py::cast(std::vector<std::string>(std::begin(sola::kCudaFeatures), std::end(sola::kCudaFeatures))));
  m.def("cuda_features_off", &sola::cuda_features_off, "names of what CUDA kernels may not use");
  m.def("switch_cuda_features_off", &sola::switch_cuda_features_off, py::arg("names"),
        "in the place of what was off before");
  sola::bind_softmax_routes(m);
}
