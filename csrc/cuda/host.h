// what the host sides of the CUDA ops share: dtype, device, stream, how much work fills a device
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "cuda/kernels.h"
#include "cuda_features.h"
#include "sizes.h"

// the emulator of tests/emulator registers the same functions for CPU tensors, under a name of its own
#ifndef SOLA_CUDA_LIBRARY
#define SOLA_CUDA_LIBRARY sola
#define SOLA_CUDA_KEY CUDA
#endif

namespace sola::cuda {

void* current_stream(const at::Device& device);

// how much fills a device; the numbers of multiprocessors of an H100 or H200 where nobody says. capability: 90 for 9.0
struct DeviceSize {
  int64_t multiprocessors = 132;
  int capability = 0;
};
DeviceSize size_of(const at::Device& device);

// float64 has no kernels here
inline void check_dtype(const char* op, const char* name, const at::Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.scalar_type() != at::kDouble, op, ": ", name,
                    " must be one of float32, bfloat16, float16 on cuda, got float64; float64 runs on cpu");
}

inline void check_launch(const char* op, int error) {
  TORCH_CHECK(error == 0, op, ": a CUDA kernel could not be started: ", error_text(error));
}

// Rows of tokens, or dense parameters, `stride` apart, that can be copied 16 bytes at a time.
inline at::Tensor in_vectors(const at::Tensor& rows, int64_t stride) {
  const bool fits = (reinterpret_cast<uintptr_t>(rows.data_ptr()) | (stride * rows.element_size())) % 16 == 0;
  return fits ? rows : rows.clone(at::MemoryFormat::Contiguous);
}
inline at::Tensor tokens_in_vectors(const at::Tensor& x) {
  const at::Tensor rows = as_rows(x);
  return in_vectors(rows, row_stride(rows));
}

inline at::TensorOptions float_like(const at::Tensor& tensor) { return tensor.options().dtype(at::kFloat); }
inline float* floats(const at::Tensor& tensor) { return tensor.defined() ? tensor.data_ptr<float>() : nullptr; }

}  // namespace sola::cuda
