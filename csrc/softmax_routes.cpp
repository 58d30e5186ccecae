// the ordered list of routes of softmax attention on CUDA, and the choice

#include "softmax_routes.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <iterator>
#include <memory>
#include <mutex>
#include <stdexcept>

namespace sola {
namespace {

// A backend of PyTorch stands before our kernels for the (device, dtype, head dim, tokens) where it has been measured
// faster: `sola-profile kernels --device cuda` measures, and prints such entries. Nothing has been measured.
const SoftmaxRoutes& built_in() {
  static const SoftmaxRoutes routes = {
      {SoftmaxBackend::own, "no backend of PyTorch has been measured faster"},
  };
  return routes;
}

struct Dtypes {
  const char* name;
  Dtype dtype;
};
constexpr Dtypes kDtypes[] = {{"float32", Dtype::f32}, {"bfloat16", Dtype::bf16}, {"float16", Dtype::f16}};

const char* name_of(Dtype dtype) {
  for (const Dtypes& known : kDtypes) {
    if (known.dtype == dtype) return known.name;
  }
  return "float64";
}

std::string text_of(int capability) { return std::to_string(capability / 10) + "." + std::to_string(capability % 10); }

std::atomic<SoftmaxBackend> pinned{SoftmaxBackend::automatic};

// read at every call, and changed as good as never
std::mutex routes_change;
std::shared_ptr<const SoftmaxRoutes> routes_in_force = std::make_shared<const SoftmaxRoutes>(built_in());

std::shared_ptr<const SoftmaxRoutes> in_force() {
  const std::lock_guard guard(routes_change);
  return routes_in_force;
}

}  // namespace

SoftmaxBackend softmax_backend_of(const std::string& name) {
  const auto* found = std::find(std::begin(kSoftmaxBackends), std::end(kSoftmaxBackends), name);
  if (found == std::end(kSoftmaxBackends)) throw std::invalid_argument("no softmax backend is named " + name);
  return static_cast<SoftmaxBackend>(found - std::begin(kSoftmaxBackends));
}

Dtype dtype_of(const std::string& name) {
  for (const Dtypes& known : kDtypes) {
    if (known.name == name) return known.dtype;
  }
  throw std::invalid_argument("the dtype must be one of float32, bfloat16, float16, got " + name);
}

std::string refusal(SoftmaxBackend backend, const SoftmaxCall& call) {
  if (backend == SoftmaxBackend::own) return "";
  const AttentionSizes& s = call.size;
  const bool cudnn = backend == SoftmaxBackend::cudnn, strict = cudnn || backend == SoftmaxBackend::flash;
  const bool half = call.dtype == Dtype::bf16 || call.dtype == Dtype::f16;
  const int64_t step = half ? 8 : 4;  // numbers in 16 bytes
  const auto got = [](int64_t a, int64_t b) { return ", got " + std::to_string(a) + " and " + std::to_string(b); };

  if (call.off[static_cast<int>(backend)]) {
    return "it is switched off in PyTorch, in torch.backends.cuda or by use_deterministic_algorithms";
  }
  if (call.capability < 80) return "it needs compute capability 8.0 or later, got " + text_of(call.capability);
  if (strict && !half) return std::string("it takes bfloat16 and float16, got ") + name_of(call.dtype);
  if (call.dtype == Dtype::f64) return "it takes float32, bfloat16 and float16, got float64";
  if (s.B > 65535 || s.H > 65535) return "it takes up to 65535 batches and heads" + got(s.B, s.H);
  if (strict && s.D != s.V) return "it takes q and v of one head dim" + got(s.D, s.V);
  if (s.D % step != 0 || s.V % step != 0) {
    return "it takes head dims in multiples of " + std::to_string(step) + got(s.D, s.V);
  }
  if (cudnn && s.D > 128) return "it takes head dims up to 128, got " + std::to_string(s.D);
  // others need a fix of cuDNN 9.15.1: see sdp_utils.cpp of PyTorch, and its issue 169849
  if (cudnn && (s.N % 128 != 0 || s.M % 128 != 0)) return "it takes tokens in multiples of 128" + got(s.N, s.M);
  // masks that aren't square are aligned differently
  if (call.causal && s.N != s.M) return "when causal it takes as many keys as queries" + got(s.N, s.M);
  if (!(call.scale > 0 && std::isfinite(call.scale))) {
    return "it takes a positive finite scale, got " + std::to_string(call.scale);
  }
  if (!call.aligned) return "it takes addresses and strides in multiples of 16 bytes";
  if (call.expanded) return "it takes no expanded tensors";
  if (call.far) return "it takes offsets within a batch up to 2^31 numbers";
  return "";
}

bool matches(const SoftmaxRoute& route, const SoftmaxCall& call) {
  const AttentionSizes& s = call.size;
  const auto among = [&](int64_t dim) { return route.least_dim <= dim && dim <= route.most_dim; };
  const auto& dtypes = route.dtypes;
  return route.lowest_capability <= call.capability && call.capability <= route.highest_capability && among(s.D) &&
         among(s.V) && route.least_queries <= s.N && route.least_keys <= s.M &&
         route.causal.value_or(call.causal) == call.causal &&
         (dtypes.empty() || std::find(dtypes.begin(), dtypes.end(), call.dtype) != dtypes.end());
}

std::string describe(const SoftmaxRoute& route) {
  const SoftmaxRoute any;
  std::vector<std::string> parts;
  for (const Dtype dtype : route.dtypes) parts.emplace_back(name_of(dtype));
  const std::string least = std::to_string(route.least_dim), most = std::to_string(route.most_dim);
  if (route.least_dim > any.least_dim || route.most_dim < any.most_dim) {
    parts.push_back("head dim " + (least == most ? least : least + " to " + most));
  }
  if (route.least_queries > any.least_queries)
    parts.push_back(std::to_string(route.least_queries) + " queries or more");
  if (route.least_keys > any.least_keys) parts.push_back(std::to_string(route.least_keys) + " keys or more");
  if (route.causal) parts.emplace_back(*route.causal ? "causal" : "not causal");
  const int lowest = route.lowest_capability, highest = route.highest_capability;
  if (lowest == highest) {
    parts.push_back("compute capability " + text_of(lowest));
  } else if (lowest > any.lowest_capability || highest < any.highest_capability) {
    parts.push_back("compute capability " + text_of(lowest) + " to " + text_of(highest));
  }
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : ", ") + part;
  return text.empty() ? "everything" : text;
}

SoftmaxRoutes softmax_routes() { return *in_force(); }

void set_softmax_routes(const SoftmaxRoutes& routes) {
  auto all = std::make_shared<SoftmaxRoutes>(routes);
  all->insert(all->end(), built_in().begin(), built_in().end());
  const std::lock_guard guard(routes_change);
  routes_in_force = std::move(all);
}

SoftmaxBackend pinned_softmax_backend() { return pinned.load(); }
void pin_softmax_backend(SoftmaxBackend backend) { pinned.store(backend); }

SoftmaxBackend choose_softmax(const SoftmaxCall& call, std::string* reason) {
  const AttentionSizes& s = call.size;
  const SoftmaxBackend wish = pinned.load();
  if (s.B * s.H == 0 || s.N == 0 || s.M == 0) {
    if (reason != nullptr) *reason = "nothing to compute";
    return SoftmaxBackend::own;
  }
  if (wish != SoftmaxBackend::automatic) {
    if (reason != nullptr) *reason = "pinned";
    return wish;
  }
  const auto routes = in_force();
  for (const SoftmaxRoute& route : *routes) {
    if (!matches(route, call) || !refusal(route.backend, call).empty()) continue;
    if (reason != nullptr) *reason = route.evidence;
    return route.backend;
  }
  return SoftmaxBackend::own;
}

}  // namespace sola
