#pragma once

#include <pybind11/pybind11.h>

namespace sola {

void bind_softmax_routes(pybind11::module_& m);

}  // namespace sola
