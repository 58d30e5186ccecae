// the host sides of the CUDA ops, registered for CPU tensors as torch.ops.sola_emulated, with kernels that the emulator
// runs
//
// One translation unit: torch's headers take longer to read than everything else here to compile.

#define SOLA_CUDA_LIBRARY sola_emulated
#define SOLA_CUDA_KEY CPU

#include "cuda/host.h"
#include "schemas.h"

namespace sola::cuda {

void* current_stream(const at::Device&) { return nullptr; }

}  // namespace sola::cuda

#include "cuda/chunked_attention.cpp"
#include "cuda/linear_attention.cpp"
#include "cuda/softmax_attention.cpp"
#include "cuda/wkv.cpp"

namespace simt {

void set_seed(uint64_t seed);
int64_t blocks_run();

}  // namespace simt

TORCH_LIBRARY(sola_emulated, m) {
  sola::define_schemas(m);
  // beside the ops: the order in which things happen, and a count that shows that they did
  m.def("set_seed(int seed) -> ()", [](int64_t seed) { simt::set_seed(uint64_t(seed)); });
  m.def("blocks_run() -> int", [] { return simt::blocks_run(); });
}
