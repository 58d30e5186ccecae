// linear attention in chunks: the gradients of q and k

#include "cuda/chunked_kernel.cuh"
#include "cuda/kernels.h"

namespace sola::cuda {

int launch_chunk_gradients(const ChunkWalkParams& p, Dtype dtype, void* stream) {
  return launch_walk<Job::gradients>(p, dtype, stream);
}

}  // namespace sola::cuda
