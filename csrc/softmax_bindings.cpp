// the list of softmax attention's routes as Python sees it

#include "softmax_bindings.h"

#include <pybind11/stl.h>

#include <stdexcept>

#include "softmax_routes.h"

namespace py = pybind11;

namespace sola {
namespace {

// keyword arguments are the members of the same names; others are an AttributeError
template <class T>
T& set_members(T& value, const py::kwargs& members) {
  const py::object view = py::cast(&value, py::return_value_policy::reference);
  for (const auto& [name, member] : members) py::setattr(view, name, member);
  return value;
}

SoftmaxRoute make_route(const std::string& backend, const std::string& evidence, const py::kwargs& members) {
  SoftmaxRoute route{softmax_backend_of(backend), evidence};
  if (route.backend == SoftmaxBackend::automatic)
    throw std::invalid_argument("a route must name one backend, got auto");
  return set_members(route, members);
}

// what would run, and what speaks for it
std::pair<std::string, std::string> route_of(const py::kwargs& members) {
  SoftmaxCall call;
  set_members(call, members);
  std::string reason;
  const SoftmaxBackend chosen = choose_softmax(call, &reason);
  const std::string problem = refusal(chosen, call);
  if (!problem.empty()) throw std::invalid_argument(std::string(name_of(chosen)) + ": " + problem);
  return {name_of(chosen), reason};
}

void bind_route(py::module_& m) {
  py::class_<SoftmaxRoute>(m, "SoftmaxRoute", "one line of the list of softmax attention's routes on CUDA")
      .def(py::init(&make_route), py::arg("backend"), py::arg("evidence"))
      .def_property_readonly("backend", [](const SoftmaxRoute& route) { return name_of(route.backend); })
      .def_readonly("evidence", &SoftmaxRoute::evidence)
      .def_readwrite("lowest_capability", &SoftmaxRoute::lowest_capability)
      .def_readwrite("highest_capability", &SoftmaxRoute::highest_capability)
      .def_property("dtypes", nullptr,
                    [](SoftmaxRoute& route, const std::vector<std::string>& names) {
                      route.dtypes.clear();
                      for (const std::string& name : names) route.dtypes.push_back(dtype_of(name));
                    })
      .def_readwrite("least_dim", &SoftmaxRoute::least_dim)
      .def_readwrite("most_dim", &SoftmaxRoute::most_dim)
      .def_readwrite("least_queries", &SoftmaxRoute::least_queries)
      .def_readwrite("least_keys", &SoftmaxRoute::least_keys)
      .def_readwrite("causal", &SoftmaxRoute::causal)
      .def("__repr__", [](const SoftmaxRoute& route) {
        return std::string(name_of(route.backend)) + " for " + describe(route) + " (" + route.evidence + ")";
      });
}

void bind_call(py::module_& m) {
  py::class_<SoftmaxCall> call(m, "SoftmaxCall", "what the choice of a route depends on");
  call.def_readwrite("capability", &SoftmaxCall::capability)
      .def_property("dtype", nullptr, [](SoftmaxCall& self, const std::string& name) { self.dtype = dtype_of(name); })
      .def_readwrite("scale", &SoftmaxCall::scale)
      .def_readwrite("causal", &SoftmaxCall::causal)
      .def_readwrite("aligned", &SoftmaxCall::aligned)
      .def_readwrite("expanded", &SoftmaxCall::expanded)
      .def_readwrite("far", &SoftmaxCall::far);
  const auto bind_size = [&](const char* name, int64_t AttentionSizes::* member) {
    call.def_property(name, nullptr, [member](SoftmaxCall& self, int64_t value) { self.size.*member = value; });
  };
  bind_size("B", &AttentionSizes::B);
  bind_size("N", &AttentionSizes::N);
  bind_size("M", &AttentionSizes::M);
  bind_size("H", &AttentionSizes::H);
  bind_size("D", &AttentionSizes::D);
  bind_size("V", &AttentionSizes::V);
}

}  // namespace

void bind_softmax_routes(py::module_& m) {
  bind_route(m);
  bind_call(m);
  m.attr("SOFTMAX_BACKENDS") =
      py::tuple(py::cast(std::vector<std::string>(std::begin(kSoftmaxBackends), std::end(kSoftmaxBackends))));
  m.def("softmax_routes", &softmax_routes, "the list in force, first to last");
  m.def("set_softmax_routes", &set_softmax_routes, py::arg("routes"), "puts routes before the built-in list");
  m.def("softmax_backend", [] { return name_of(pinned_softmax_backend()); }, "what is asked for, auto or a backend");
  m.def(
      "pin_softmax_backend", [](const std::string& name) { pin_softmax_backend(softmax_backend_of(name)); },
      py::arg("name"));
  m.def("softmax_route", &route_of,
        "(backend, what speaks for it) of a call on CUDA, by members of SoftmaxCall; ValueError with the reason if the "
        "pinned one can't take it");
}

}  // namespace sola
