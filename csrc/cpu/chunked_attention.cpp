// linear attention in chunks on the CPU: checks, outputs, segments, threads

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <vector>

#include "cpu/parallel.h"
#include "feature_map.h"
#include "sizes.h"

namespace sola {
namespace {

constexpr const char* kOp = "linear_attention";
// states of a segment's chunks that a task keeps, so that they stay in the second cache
constexpr int64_t kStateBytes = 3 << 20;
constexpr int64_t kFewestChunks = 4;

std::vector<double> log_decays(const std::optional<at::Tensor>& decay, const at::Tensor& q) {
  std::vector<double> logs(q.size(2), 0.0);
  if (!decay) return logs;
  check_vector(kOp, "decay", *decay, "H", q.size(2), q);
  for (int64_t h = 0; h < q.size(2); ++h) {
    const void* entry = static_cast<const std::byte*>(decay->data_ptr()) + h * decay->stride(0) * decay->element_size();
    const double value =
        decay->scalar_type() == at::kDouble ? *static_cast<const double*>(entry) : *static_cast<const float*>(entry);
    TORCH_CHECK_VALUE(value > 0 && value <= 1, kOp, ": decay must be in (0, 1], got ", value, " for head ", h);
    logs[h] = std::log(value);
  }
  return logs;
}

AttentionSizes check_chunked(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t chunk) {
  const auto s = check_attention(kOp, q, k, v);
  TORCH_CHECK_VALUE(s.M == s.N, kOp, ": k must have as many tokens as q with decay or causal, ", s.N, ", got ", s.M);
  TORCH_CHECK_VALUE(chunk >= 1 && chunk <= 256, kOp, ": chunk must be 1 to 256, got ", chunk);
  return s;
}

// cuts every head into segments of whole chunks and runs them with the states that enter
class Segments {
 public:
  Segments(const ChunkedParams& p, Dtype dtype, bool backward, const at::TensorOptions& sums)
      : p_(p), dtype_(dtype), backward_(backward), heads_(p.size.B * p.size.H), kernel_(kernels().chunked_attention) {
    const int64_t chunks = (p.size.N + p.chunk - 1) / p.chunk;
    const int64_t state = kernel_.state(p, task()), element = dtype == Dtype::f64 ? 8 : 4;
    // states kept per chunk: none in a causal forward, which walks one way only
    const int64_t kept = (backward ? 1 : 0) + (p.causal ? 0 : 1);
    const int64_t longest = kept ? std::max(kFewestChunks, kStateBytes / (kept * state * element)) : chunks;
    const int64_t fewest = (chunks + longest - 1) / longest;
    const int64_t most = std::max(fewest, chunks / kFewestChunks);
    const int64_t wanted = std::min(most, fewest * choose_shares(heads_ * fewest, std::max<int64_t>(1, most / fewest)));
    const int64_t length = (chunks + wanted - 1) / wanted;
    tokens_ = length * p.chunk;
    count_ = (p.size.N + tokens_ - 1) / tokens_;
    const int64_t states = (backward ? 2 : 1) * (p.causal ? 1 : 2);
    stride_ = states * state * element;
    if (count_ > 1) buffer_ = at::empty({heads_ * count_, states * state}, sums);
    scratch_ = kernel_.scratch(p, task(), std::min(tokens_, p.size.N), backward);
    gather();
  }

  int64_t count() const { return count_; }

  // f(task, place, states, index of the segment among all)
  template <class F>
  void run(double products, const F& f) const {
    const auto& s = p_.size;
    const double pairs = double(p_.chunk) * double(s.D + s.V), across = 4.0 * double(s.D * s.V);
    run_tasks(heads_ * count_, products * double(tokens_) * (pairs + across), dtype_, native_for(dtype_), scratch_,
              [&](int64_t index, const Task& task) {
                const int64_t head = index / count_, begin = index % count_ * tokens_;
                f(task, Place{head / s.H, head % s.H, begin, std::min(begin + tokens_, s.N)}, states(index), index);
              });
  }

 private:
  Task task() const { return {dtype_, native_for(dtype_), nullptr}; }

  void* states(int64_t index) const {
    return count_ > 1 ? static_cast<std::byte*>(buffer_.data_ptr()) + index * stride_ : nullptr;
  }

  // a first pass, when there are several segments: what each leaves behind, then what enters each
  void gather() {
    if (count_ == 1) return;
    run(1.0, [&](const Task& task, Place place, void* states, int64_t) {
      kernel_.gather(p_, task, place, backward_, states);
    });
    const auto& s = p_.size;
    run_tasks(heads_, double(count_ * stride_), dtype_, native_for(dtype_), scratch_,
              [&](int64_t head, const Task& task) {
                kernel_.connect(p_, task, {head / s.H, head % s.H, 0, p_.chunk}, backward_, count_, tokens_,
                                states(head * count_));
              });
  }

  const ChunkedParams& p_;
  Dtype dtype_;
  bool backward_;
  int64_t heads_, tokens_, count_, stride_;
  const ChunkedKernels& kernel_;
  size_t scratch_;
  at::Tensor buffer_;
};

std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                           const std::optional<at::Tensor>& decay, c10::string_view feature_map,
                                           bool causal, bool normalize, double eps, int64_t chunk) {
  const auto s = check_chunked(q, k, v, chunk);
  const FeatureMap map = parse_feature_map(kOp, feature_map);
  const auto logs = log_decays(decay, q);
  const auto sums = q.options().dtype(accumulate_type(q));
  auto out = at::empty({s.B, s.N, s.H, s.V}, q.options());
  auto normaliser = at::empty({s.B, s.H, normalize ? s.N : 0}, sums);
  if (out.numel() == 0) return {out, normaliser};

  const ChunkedParams p{s,           view_of(q), view_of(k), view_of(v), view_of(out), normaliser.data_ptr(),
                        logs.data(), map,        causal,     normalize,  eps,          chunk,
                        {},          {},         {},         {},         false};
  Segments(p, dtype_of(q), false, sums).run(1.0, [&](const Task& task, Place place, const void* states, int64_t) {
    kernels().chunked_attention.forward(p, task, place, states);
  });
  return {out, normaliser};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& grad_out, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const std::optional<at::Tensor>& decay, const at::Tensor& out, const at::Tensor& normaliser,
    c10::string_view feature_map, bool causal, bool normalize, double eps, int64_t chunk, bool decay_grad) {
  const auto s = check_chunked(q, k, v, chunk);
  const auto logs = log_decays(decay, q);
  const auto sums = q.options().dtype(accumulate_type(q));
  decay_grad = decay_grad && decay;
  auto grad_q = at::empty(q.sizes(), q.options());
  auto grad_k = at::empty(k.sizes(), k.options());
  auto grad_v = at::empty(v.sizes(), v.options());
  auto grad_decay = at::zeros({decay_grad ? s.H : 0}, sums);
  if (s.B * s.N * s.H == 0) return {grad_q, grad_k, grad_v, grad_decay};

  const at::Tensor grad = dense_last(grad_out), saved = dense_last(out), denominators = normaliser.contiguous();
  const ChunkedParams p{s,
                        view_of(q),
                        view_of(k),
                        view_of(v),
                        view_of(saved),
                        denominators.data_ptr(),
                        logs.data(),
                        parse_feature_map(kOp, feature_map),
                        causal,
                        normalize,
                        eps,
                        chunk,
                        view_of(grad),
                        view_of(grad_q),
                        view_of(grad_k),
                        view_of(grad_v),
                        decay_grad};
  const Segments segments(p, dtype_of(q), true, sums);
  std::vector<double> grad_logs(s.B * s.H * segments.count());
  segments.run(3.0, [&](const Task& task, Place place, const void* states, int64_t index) {
    grad_logs[index] = kernels().chunked_attention.backward(p, task, place, states);
  });
  for (int64_t h = 0; decay_grad && h < s.H; ++h) {
    double total = 0;
    for (int64_t b = 0; b < s.B; ++b) {
      for (int64_t i = 0; i < segments.count(); ++i) total += grad_logs[(b * s.H + h) * segments.count() + i];
    }
    // d log γ = dγ / γ
    grad_decay[h].fill_(total / std::exp(logs[h]));
  }
  return {grad_q, grad_k, grad_v, grad_decay};
}

}  // namespace

TORCH_LIBRARY_IMPL(sola, CPU, m) {
  m.impl("chunked_linear_attention", &forward);
  m.impl("chunked_linear_attention_backward", &backward);
}

}  // namespace sola
