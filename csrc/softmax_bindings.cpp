// the list of softmax attention's routes as Python sees it

#include "softmax_bindings.h"

#include <pybind11/stl.h>

#include <stdexcept>

#include "softmax_routes.h"

namespace py = pybind11;

namespace sola {
namespace {

SoftmaxRoute make_route(const std::string& backend, const std::string& evidence, int lowest, int highest,
                        const std::vector<std::string>& dtypes, int64_t least_dim, int64_t most_dim, int64_t queries,
                        int64_t keys, std::optional<bool> causal) {
  SoftmaxRoute route{
      softmax_backend_of(backend), evidence, lowest, highest, {}, least_dim, most_dim, queries, keys, causal};
  if (route.backend == SoftmaxBackend::automatic)
    throw std::invalid_argument("a route must name one backend, got auto");
  for (const std::string& dtype : dtypes) route.dtypes.push_back(dtype_of(dtype));
  return route;
}

// what would run, and what speaks for it
std::pair<std::string, std::string> route_of(int capability, const std::string& dtype, int64_t D, int64_t V, int64_t N,
                                             int64_t M, bool causal, int64_t batch, int64_t heads, double scale,
                                             bool aligned, bool expanded, bool far) {
  const SoftmaxCall call{capability, dtype_of(dtype), {batch, N, M, heads, D, V}, scale, causal, aligned, expanded,
                         far};
  std::string reason;
  const SoftmaxBackend chosen = choose_softmax(call, &reason);
  const std::string problem = refusal(chosen, call);
  if (!problem.empty()) throw std::invalid_argument(std::string(name_of(chosen)) + ": " + problem);
  return {name_of(chosen), reason};
}

}  // namespace

void bind_softmax_routes(py::module_& m) {
  const SoftmaxRoute any;
  py::class_<SoftmaxRoute>(m, "SoftmaxRoute", "one line of the list of softmax attention's routes on CUDA")
      .def(py::init(&make_route), py::arg("backend"), py::arg("evidence"), py::kw_only(),
           py::arg("lowest_capability") = any.lowest_capability, py::arg("highest_capability") = any.highest_capability,
           py::arg("dtypes") = std::vector<std::string>(), py::arg("least_dim") = any.least_dim,
           py::arg("most_dim") = any.most_dim, py::arg("least_queries") = any.least_queries,
           py::arg("least_keys") = any.least_keys, py::arg("causal") = any.causal)
      .def_property_readonly("backend", [](const SoftmaxRoute& route) { return name_of(route.backend); })
      .def_readonly("evidence", &SoftmaxRoute::evidence)
      .def("__repr__", [](const SoftmaxRoute& route) {
        return std::string(name_of(route.backend)) + " for " + describe(route) + " (" + route.evidence + ")";
      });
  m.attr("SOFTMAX_BACKENDS") =
      py::tuple(py::cast(std::vector<std::string>(std::begin(kSoftmaxBackends), std::end(kSoftmaxBackends))));
  m.def("softmax_routes", &softmax_routes, "the list in force, first to last");
  m.def("set_softmax_routes", &set_softmax_routes, py::arg("routes"), "puts routes before the built-in list");
  m.def("softmax_backend", [] { return name_of(pinned_softmax_backend()); }, "what is asked for, auto or a backend");
  m.def(
      "pin_softmax_backend", [](const std::string& name) { pin_softmax_backend(softmax_backend_of(name)); },
      py::arg("name"));
  m.def("softmax_route", &route_of, py::arg("capability"), py::arg("dtype"), py::arg("D"), py::arg("V"), py::arg("N"),
        py::arg("M"), py::arg("causal"), py::kw_only(), py::arg("batch") = 1, py::arg("heads") = 1,
        py::arg("scale") = 1.0, py::arg("aligned") = true, py::arg("expanded") = false, py::arg("far") = false,
        "(backend, what speaks for it) of a call on CUDA; ValueError with the reason if the pinned one can't take it");
}

}  // namespace sola
