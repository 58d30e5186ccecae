// linear attention in chunks: outputs, and with keys and queries in each other's place the gradient of v

#include "cuda/chunked_kernel.cuh"
#include "cuda/kernels.h"

namespace sola::cuda {

int launch_chunk_values(const ChunkWalkParams& p, Dtype dtype, void* stream) {
  return launch_walk<Job::values>(p, dtype, stream);
}

}  // namespace sola::cuda
