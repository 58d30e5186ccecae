#include "cuda/kernels.h"
#include "cuda/launch.h"

namespace sola::cuda {

const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace sola::cuda
