// devices without kernels: a clear refusal

#include <torch/library.h>

#include "operators.h"

namespace sola {
namespace {

void refuse(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& arguments = op.schema().arguments();
  const auto first = stack->size() - arguments.size();
  const auto& name = op.schema().operator_name().name;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const auto& value = (*stack)[first + i];
    const bool elsewhere = value.isTensor() && value.toTensor().defined() && !value.toTensor().is_cpu();
    TORCH_CHECK_VALUE(
        !elsewhere, name.substr(name.find("::") + 2), ": ", arguments[i].name(), " must be on cpu, got ",
        value.toTensor().device(),
        "; this build has no kernels there. Under sola_profile.pytorch_operators() models run on PyTorch's");
  }
  TORCH_CHECK_VALUE(false, name, ": this build has kernels for cpu only");
}

void refuse_all(torch::Library& m) {
  for (const char* op : kForwardOps) m.impl(op, torch::CppFunction::makeFromBoxedFunction<&refuse>());
}

}  // namespace

// csrc/cuda registers its kernels where nvcc was found
#ifndef SOLA_CUDA_TARGETS
TORCH_LIBRARY_IMPL(sola, CUDA, m) { refuse_all(m); }
#endif
TORCH_LIBRARY_IMPL(sola, XPU, m) { refuse_all(m); }
TORCH_LIBRARY_IMPL(sola, MPS, m) { refuse_all(m); }

}  // namespace sola
