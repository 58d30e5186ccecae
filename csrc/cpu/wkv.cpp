// bidirectional WKV on the CPU: checks, outputs, stretches of tokens, threads

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "cpu/parallel.h"
#include "cpu/shares.h"
#include "sizes.h"

namespace sola {
namespace {

constexpr const char* kOp = "wkv";
// scratch that a task may fill: every further stretch costs a first pass, so they are as long as memory allows
constexpr size_t kScratchBytes = 3 << 20;
// what one token of one channel costs, in scalar operations
constexpr double kForwardOps = 40, kBackwardOps = 120;

// what the backward needs beside the output: the logarithm of the normaliser, and the output itself before it was
// rounded to half precision, since the gradient of the decay adds up its small differences over all tokens
int64_t saved_planes(const at::Tensor& k) { return k.element_size() == 2 ? 2 : 1; }

void* plane(const at::Tensor& saved, int64_t index) {
  if (index >= saved.size(0)) return nullptr;
  return static_cast<std::byte*>(saved.data_ptr()) + index * saved.stride(0) * saved.element_size();
}

// cuts the tokens into stretches, for the caches and for the threads, and runs a kernel over them
class Stretches {
 public:
  Stretches(const WkvKernels& kernel, const WkvParams& p, Dtype dtype)
      : kernel_(kernel), p_(p), dtype_(dtype), width_(kernel.block(p, task())), blocks_((p.C + width_ - 1) / width_) {
    const auto fits = [&](int64_t tokens) { return kernel.scratch(p, task(), tokens) <= kScratchBytes; };
    int64_t longest = p.N;
    while (longest > kShortest && !fits(longest)) longest = (longest + 1) / 2;
    const int64_t fewest = (p.N + longest - 1) / longest;
    const int64_t most = std::max(fewest, p.N / kShortest);
    const int64_t wanted =
        std::min(most, fewest * choose_shares(p.B * blocks_ * fewest, std::max<int64_t>(1, most / fewest)));
    tokens_ = (p.N + wanted - 1) / wanted;
    count_ = (p.N + tokens_ - 1) / tokens_;
    scratch_ = kernel.scratch(p, task(), tokens_);
  }

  int64_t count() const { return count_; }

  void run(double ops) {
    const int64_t states = int64_t(kernel_.states(task()));
    if (count_ > 1) {
      // a first pass: what every stretch sums up by itself, then what enters each
      buffer_ = at::empty({p_.B * blocks_ * count_ * states}, at::kByte);
      over(count_, ops / 2,
           [&](const Task& task, Stretch s, int64_t i) { kernel_.gather(p_, task, s, at(i, states)); });
      over(1, ops, [&](const Task& task, Stretch s, int64_t i) {
        kernel_.connect(p_, task, s, count_, at(i * count_, states));
      });
    }
    over(count_, ops, [&](const Task& task, Stretch s, int64_t i) { kernel_.run(p_, task, s, at(i, states)); });
  }

 private:
  static constexpr int64_t kShortest = 64;

  Task task() const { return {dtype_, nullptr, nullptr}; }

  void* at(int64_t index, int64_t bytes) const {
    return count_ > 1 ? static_cast<std::byte*>(buffer_.data_ptr()) + index * bytes : nullptr;
  }

  // f(task, stretch, index) for the first `count` stretches of every block of channels
  template <class F>
  void over(int64_t count, double ops, const F& f) const {
    run_tasks(p_.B * blocks_ * count, ops * double(tokens_ * width_), dtype_, nullptr, scratch_,
              [&](int64_t index, const Task& task) {
                const int64_t block = index / count, s = index % count, begin = s * tokens_;
                f(task, Stretch{block / blocks_, block % blocks_ * width_, begin, std::min(begin + tokens_, p_.N), s},
                  index);
              });
  }

  const WkvKernels& kernel_;
  const WkvParams& p_;
  Dtype dtype_;
  int64_t width_, blocks_, tokens_, count_;
  size_t scratch_;
  at::Tensor buffer_;
};

std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& k, const at::Tensor& v, const at::Tensor& decay,
                                           const at::Tensor& bonus, bool save) {
  check_scan(kOp, k, v, decay, bonus);
  const int64_t B = k.size(0), N = k.size(1), C = k.size(2);
  auto out = at::empty({B, N, C}, k.options());
  auto saved = at::empty({save ? saved_planes(k) : 0, B, N, C}, decay.options());
  if (out.numel() == 0) return {out, saved};

  const at::Tensor rates = decay.contiguous(), bonuses = bonus.contiguous();
  const WkvParams p{B,
                    N,
                    C,
                    view_of(k),
                    view_of(v),
                    view_of(out),
                    rates.data_ptr(),
                    bonuses.data_ptr(),
                    plane(saved, 0),
                    plane(saved, 1),
                    {},
                    {},
                    {},
                    nullptr,
                    nullptr,
                    1};
  Stretches(kernels().wkv_forward, p, dtype_of(k)).run(kForwardOps);
  return {out, saved};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& grad_out, const at::Tensor& k,
                                                                    const at::Tensor& v, const at::Tensor& decay,
                                                                    const at::Tensor& bonus, const at::Tensor& out,
                                                                    const at::Tensor& kept) {
  check_scan(kOp, k, v, decay, bonus);
  const int64_t B = k.size(0), N = k.size(1), C = k.size(2);
  auto grad_k = at::empty(k.sizes(), k.options());
  auto grad_v = at::empty(v.sizes(), v.options());
  if (k.numel() == 0) return {grad_k, grad_v, at::zeros({C}, decay.options()), at::zeros({C}, bonus.options())};
  TORCH_CHECK_VALUE(kept.dim() == 4 && kept.size(0) == saved_planes(k), kOp,
                    ": saved must come from a forward with save=True, got shape ", shape_text(kept.sizes()));

  const at::Tensor rates = decay.contiguous(), bonuses = bonus.contiguous(), saved = kept.contiguous();
  const at::Tensor grad = dense_last(grad_out), outputs = dense_last(out);
  WkvParams p{B,
              N,
              C,
              view_of(k),
              view_of(v),
              view_of(outputs),
              rates.data_ptr(),
              bonuses.data_ptr(),
              plane(saved, 0),
              plane(saved, 1),
              view_of(grad),
              view_of(grad_k),
              view_of(grad_v),
              nullptr,
              nullptr,
              1};
  Stretches stretches(kernels().wkv_backward, p, dtype_of(k));
  p.stretches = stretches.count();
  auto grad_decay = at::empty({B * p.stretches, C}, decay.options());
  auto grad_bonus = at::empty({B * p.stretches, C}, bonus.options());
  p.grad_decay = grad_decay.data_ptr();
  p.grad_bonus = grad_bonus.data_ptr();
  stretches.run(kBackwardOps);
  return {grad_k, grad_v, add_up(grad_decay), add_up(grad_bonus)};
}

}  // namespace

TORCH_LIBRARY_IMPL(sola, CPU, m) {
  m.impl("wkv", &forward);
  m.impl("wkv_backward", &backward);
}

}  // namespace sola
