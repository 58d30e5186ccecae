// linear attention with one global state on the CPU: checks, outputs, threads

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "cpu/parallel.h"
#include "feature_map.h"
#include "sizes.h"

namespace sola {
namespace {

constexpr const char* kOp = "linear_attention";
// tokens in one task: enough to outweigh loading the state, few enough to keep threads level
constexpr int64_t kTokens = 512;
// tokens whose tiles are added up one after the other: every addition rounds the sum, so that over more of them it
// would lose what the tiles hold
constexpr int64_t kLongestSum = 2048;

struct Ranges {
  int64_t length, count;
};

// cuts `tokens` of each of `heads` heads into equal ranges of at most `longest`, so that all threads have work
Ranges cut(int64_t tokens, int64_t heads, int64_t longest) {
  const int64_t fewest = std::max<int64_t>(1, (tokens + longest - 1) / longest);
  const int64_t shares = fewest * choose_shares(heads * fewest, std::max<int64_t>(1, tokens / 64 / fewest));
  const int64_t length = std::max<int64_t>(1, (tokens + shares - 1) / shares);
  return {length, std::max<int64_t>(1, (tokens + length - 1) / length)};
}

// everything a pass over ranges of tokens needs
struct Pass {
  const LinearParams& p;
  Dtype dtype;
  size_t scratch;

  template <class F>
  void over(Ranges ranges, int64_t tokens, const F& f) const {
    const auto& s = p.size;
    const double ops = 2.0 * double(ranges.length) * double(s.D * s.V);
    run_tasks(s.B * s.H * ranges.count, ops, dtype, native_for(dtype), scratch, [&](int64_t index, const Task& task) {
      const int64_t head = index / ranges.count, range = index % ranges.count, begin = range * ranges.length;
      f(task, Place{head / s.H, head % s.H, begin, std::min(begin + ranges.length, tokens)}, head, range);
    });
  }
};

// the shares of all heads, summed up by `gather` and then combined
class Shares {
 public:
  Shares(const LinearParams& p, Dtype dtype, Ranges ranges, const at::TensorOptions& options)
      : count_(ranges.count),
        numbers_(kernels().linear_attention.share(p, {dtype, native_for(dtype), nullptr})),
        buffer_(at::empty({p.size.B * p.size.H, ranges.count, numbers_}, options)) {}

  void* at(int64_t head, int64_t range) const {
    auto* base = static_cast<std::byte*>(buffer_.data_ptr());
    return base + (head * count_ + range) * numbers_ * int64_t(buffer_.element_size());
  }

  void combine(const Pass& pass) const {
    pass.over({1, 1}, 1, [&](const Task& task, Place place, int64_t head, int64_t) {
      kernels().linear_attention.combine(pass.p, task, place, {0, count_, at(head, 0)});
    });
  }

 private:
  int64_t count_, numbers_;
  at::Tensor buffer_;
};

std::tuple<at::Tensor, at::Tensor, at::Tensor> forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                       c10::string_view feature_map, bool normalize, double eps) {
  const auto s = check_attention(kOp, q, k, v);
  const FeatureMap map = parse_feature_map(kOp, feature_map);
  const auto sums = q.options().dtype(accumulate_type(q));
  auto out = at::empty({s.B, s.N, s.H, s.V}, q.options());
  auto state = at::empty({s.B, s.H, s.D, s.V}, sums);
  auto key_sum = at::empty({s.B, s.H, s.D}, sums);
  if (s.B * s.H == 0) return {out, state, key_sum};

  const LinearParams p{
      s,  view_of(q), view_of(k), view_of(v), view_of(out), state.data_ptr(), key_sum.data_ptr(), map, normalize, eps,
      {}, {},         {},         {}};
  const Dtype dtype = dtype_of(q);
  const auto& kernel = kernels().linear_attention;
  const Pass pass{p, dtype, kernel.scratch(p, {dtype, native_for(dtype), nullptr})};
  const Ranges keys = cut(s.M, s.B * s.H, kLongestSum);
  const Shares shares(p, dtype, keys, sums);
  pass.over(keys, s.M, [&](const Task& task, Place place, int64_t head, int64_t range) {
    kernel.gather(p, task, place, shares.at(head, range));
  });
  shares.combine(pass);
  const Ranges queries = cut(s.N, s.B * s.H, kTokens);
  if (s.N > 0)
    pass.over(queries, s.N, [&](const Task& task, Place place, int64_t, int64_t) { kernel.read(p, task, place); });
  return {out, state, key_sum};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& grad_out, const at::Tensor& q,
                                                        const at::Tensor& k, const at::Tensor& v,
                                                        const at::Tensor& state, const at::Tensor& key_sum,
                                                        c10::string_view feature_map, bool normalize, double eps) {
  const auto s = check_attention(kOp, q, k, v);
  auto grad_q = at::empty(q.sizes(), q.options());
  auto grad_k = at::empty(k.sizes(), k.options());
  auto grad_v = at::empty(v.sizes(), v.options());
  if (s.B * s.H == 0) return {grad_q, grad_k, grad_v};

  const at::Tensor grad = dense_last(grad_out), saved = state.contiguous(), sum = key_sum.contiguous();
  const LinearParams p{s,
                       view_of(q),
                       view_of(k),
                       view_of(v),
                       {},
                       saved.data_ptr(),
                       sum.data_ptr(),
                       parse_feature_map(kOp, feature_map),
                       normalize,
                       eps,
                       view_of(grad),
                       view_of(grad_q),
                       view_of(grad_k),
                       view_of(grad_v)};
  LinearParams gradients = p;
  gradients.state = nullptr;  // the sums are the state's gradient, which nobody saves
  const Dtype dtype = dtype_of(q);
  const auto& kernel = kernels().linear_attention;
  const Pass pass{p, dtype, kernel.scratch(p, {dtype, native_for(dtype), nullptr})};
  const Ranges queries = cut(s.N, s.B * s.H, kLongestSum), keys = cut(s.M, s.B * s.H, kTokens);
  const Shares shares(p, dtype, queries, q.options().dtype(accumulate_type(q)));
  pass.over(queries, s.N, [&](const Task& task, Place place, int64_t head, int64_t range) {
    kernel.query_gradients(p, task, place, shares.at(head, range));
  });
  shares.combine({gradients, dtype, pass.scratch});
  if (s.M > 0) {
    pass.over(keys, s.M, [&](const Task& task, Place place, int64_t head, int64_t) {
      kernel.key_gradients(p, task, place, shares.at(head, 0));
    });
  }
  return {grad_q, grad_k, grad_v};
}

}  // namespace

TORCH_LIBRARY_IMPL(sola, CPU, m) {
  m.impl("linear_attention", &forward);
  m.impl("linear_attention_backward", &backward);
}

}  // namespace sola
