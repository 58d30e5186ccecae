#include "cuda/kernels.h"
#include "cuda/launch.h"

namespace sola::cuda {

const char* error_text(int error) {
  if (error == kTooManyBlocks) return "it has more work than a grid of 2147483647 blocks; split the batch";
  if (error == kTooMuchShared)
    return "a block needs more shared memory than this device has; smaller head dims need less";
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction)
    return "this build has kernels for compute capability 8.0 and later. "
           "Under sola_profile.pytorch_operators() models run on PyTorch's";
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

}  // namespace sola::cuda
