// the host sides of the CUDA ops, registered for CPU tensors as torch.ops.sola_emulated, with kernels that the emulator
// runs
//
// One translation unit: torch's headers take longer to read than everything else here to compile.

#define SOLA_CUDA_LIBRARY sola_emulated
#define SOLA_CUDA_KEY CPU

#include "cuda/host.h"
#include "schemas.h"

namespace simt {

void set_seed(uint64_t seed);
int64_t blocks_run();
void set_most_shared(int bytes);
namespace ptx {
std::vector<std::string> never_run();
}
void set_capability(int it);
int capability();

}  // namespace simt

namespace sola::cuda {

void* current_stream(const at::Device&) { return nullptr; }
// so small that blocks walk over several tiles
DeviceSize size_of(const at::Device&) { return {2, simt::capability()}; }

}  // namespace sola::cuda

#include "cuda/channel_mix.cpp"
#include "cuda/chunked_attention.cpp"
#include "cuda/layer_norm.cpp"
#include "cuda/linear_attention.cpp"
#include "cuda/shift_mix.cpp"
#include "cuda/softmax_attention.cpp"
#include "cuda/softmax_sdpa.cpp"
#include "cuda/wkv.cpp"
#include "cuda_features.cpp"
#include "softmax_routes.cpp"

namespace sola::cuda {

int run_product(int type, int layout, const float* a, const float* b, float* c);
int run_mistake(int kind, float* out);
int run_hand_over(bool waits, float* out);
int run_cluster(int kind, float* out);
int run_chain(bool bf16, int columns, const void* a, const void* b, const void* c, float* out, int mistake);
int64_t quotient_of(int64_t n, int64_t by);
int run_launch(int64_t blocks, int threads, int64_t shared);

}  // namespace sola::cuda

TORCH_LIBRARY(sola_emulated, m) {
  sola::define_schemas(m);
  // beside the ops: the order in which things happen, and a count that shows that they did
  m.def("set_seed(int seed) -> ()", [](int64_t seed) { simt::set_seed(uint64_t(seed)); });
  m.def("set_capability(int capability) -> ()", [](int64_t it) { simt::set_capability(int(it)); });
  m.def("blocks_run() -> int", [] { return simt::blocks_run(); });
  m.def("never_run() -> str[]", [] { return simt::ptx::never_run(); });
  m.def("set_most_shared(int bytes) -> ()", [](int64_t bytes) { simt::set_most_shared(int(bytes)); });
  m.def("switch_cuda_features_off(str[] names) -> ()",
        [](const std::vector<std::string>& names) { sola::switch_cuda_features_off(names); });
  // the state of csrc/softmax_routes.cpp, which is this library's own; a route for everything, or none
  m.def("pin_softmax_backend(str name) -> ()",
        [](const std::string& name) { sola::pin_softmax_backend(sola::softmax_backend_of(name)); });
  m.def("set_softmax_routes(str[] backends) -> ()", [](const std::vector<std::string>& backends) {
    sola::SoftmaxRoutes routes;
    for (const std::string& name : backends) routes.push_back({sola::softmax_backend_of(name), "a test"});
    sola::set_softmax_routes(routes);
  });
  // what tests/emulator/selftest*.cpp do
  m.def("product(int type, int layout, Tensor a, Tensor b) -> Tensor",
        [](int64_t type, int64_t layout, const at::Tensor& a, const at::Tensor& b) {
          auto c = at::empty({16, 16}, a.options());
          sola::cuda::check_launch("product", sola::cuda::run_product(int(type), int(layout), a.data_ptr<float>(),
                                                                      b.data_ptr<float>(), c.data_ptr<float>()));
          return c;
        });
  m.def("quotient(int n, int by) -> int", [](int64_t n, int64_t by) { return sola::cuda::quotient_of(n, by); });
  m.def("mistake(int kind) -> Tensor", [](int64_t kind) {
    auto out = at::empty({64}, at::kFloat);
    sola::cuda::check_launch("mistake", sola::cuda::run_mistake(int(kind), out.data_ptr<float>()));
    return out;
  });
  m.def("hand_over(bool waits) -> Tensor", [](bool waits) {
    auto out = at::empty({64}, at::kFloat);
    sola::cuda::check_launch("hand_over", sola::cuda::run_hand_over(waits, out.data_ptr<float>()));
    return out;
  });
  m.def("cluster(int kind) -> Tensor", [](int64_t kind) {
    auto out = at::empty({4}, at::kFloat);
    sola::cuda::check_launch("cluster", sola::cuda::run_cluster(int(kind), out.data_ptr<float>()));
    return out;
  });
  m.def("chain(Tensor a, Tensor b, Tensor c, int mistake) -> Tensor",
        [](const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, int64_t mistake) {
          auto out = at::empty(a.sizes(), at::kFloat);
          const bool bf16 = a.scalar_type() == at::kBFloat16;
          sola::cuda::check_launch("chain", sola::cuda::run_chain(bf16, int(a.size(1)), a.data_ptr(), b.data_ptr(),
                                                                  c.data_ptr(), out.data_ptr<float>(), int(mistake)));
          return out;
        });
  m.def("launch(int blocks, int threads, int shared) -> ()", [](int64_t blocks, int64_t threads, int64_t shared) {
    sola::cuda::check_launch("launch", sola::cuda::run_launch(blocks, int(threads), shared));
  });
}
