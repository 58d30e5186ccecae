// which kernel computes softmax attention on CUDA: an ordered list, what each backend takes, and what the user asks for
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "params.h"

namespace sola {

// `automatic` stands for the list, `own` for all kernels of csrc/cuda, the others for those of PyTorch's SDPA
enum class SoftmaxBackend { automatic, own, flash, cudnn, efficient };
constexpr const char* kSoftmaxBackends[] = {"auto", "own", "flash", "cudnn", "efficient"};

inline const char* name_of(SoftmaxBackend backend) { return kSoftmaxBackends[static_cast<int>(backend)]; }
// throws std::invalid_argument
SoftmaxBackend softmax_backend_of(const std::string& name);
Dtype dtype_of(const std::string& name);

// what a choice depends on
struct SoftmaxCall {
  int capability = 0;  // 10 · major + minor
  Dtype dtype = Dtype::bf16;
  AttentionSizes size = {1, 1, 1, 1, 1, 1};
  double scale = 1.0;
  bool causal = false;
  // addresses and strides are multiples of 16 bytes
  bool aligned = true;
  // some token, head or batch is repeated by a stride of 0
  bool expanded = false;
  // an offset within a batch leaves 32 bits
  bool far = false;
  // of PyTorch's backends, by number: what the user has switched off there
  bool off[5] = {};
};

// One line of the list: these calls go to that backend. Head dims mean D and V.
struct SoftmaxRoute {
  SoftmaxBackend backend = SoftmaxBackend::own;
  // what was measured, where and how much faster
  std::string evidence;
  int lowest_capability = 0, highest_capability = 999;
  std::vector<Dtype> dtypes = {};  // empty: all
  int64_t least_dim = 1, most_dim = 256;
  int64_t least_queries = 1, least_keys = 1;
  std::optional<bool> causal = {};  // without a value both
};
using SoftmaxRoutes = std::vector<SoftmaxRoute>;

// why a backend can't take a call, or nothing
std::string refusal(SoftmaxBackend backend, const SoftmaxCall& call);
bool matches(const SoftmaxRoute& route, const SoftmaxCall& call);
// the calls of a route in words
std::string describe(const SoftmaxRoute& route);

// the list in force, its last entry always our own kernels for everything
SoftmaxRoutes softmax_routes();
// puts routes before the built-in list, in the place of those that were put there before
void set_softmax_routes(const SoftmaxRoutes& routes);

// for the whole process, because backward passes and compiled graphs run on threads of their own
SoftmaxBackend pinned_softmax_backend();
void pin_softmax_backend(SoftmaxBackend backend);

// The pinned backend, whether it takes the call or not; otherwise the first of the list that matches and takes it.
// Empty tensors are always ours. `reason`: what speaks for the choice; not a word is composed without it.
SoftmaxBackend choose_softmax(const SoftmaxCall& call, std::string* reason = nullptr);

}  // namespace sola
