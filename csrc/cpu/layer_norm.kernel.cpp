// w ⊙ (x − mean) / √(variance + ε) + b over the channels of every token, and its gradients
//
// The mean comes first and squares are of what is left, so large numbers that differ little lose no digits. A token is
// read from memory once; what follows reads it from the first cache. Nothing is kept in between: a store waits for
// those in front of it, which go to memory, and what is read next would wait for the store.

#include <cmath>
#include <utility>

#include "cpu/channels.h"
#include "cpu/isa.h"
#include "cpu/tiles.h"

namespace sola::SOLA_ISA {
namespace {

// tokens that are on their way at once: what waits for the sums of one leaves room for the others. Of wide ones fewer,
// so that reading and writing follow each other more closely
constexpr int kNarrowTokens = 4, kWideTokens = 2;
constexpr size_t kNarrowBytes = 512;

template <class In>
class LayerNorm {
  using A = Acc<In>;
  static constexpr int64_t L = kLanes<A>;

 public:
  LayerNorm(const LayerNormParams& p, const Task& task, Place place)
      : p_(p), place_(place), padded_(padded(p)), channels_(A(p.C)) {
    A* next = reinterpret_cast<A*>(task.scratch);
    std::memset(next, 0, scratch(p));
    for (A** part : {&weight_, &bias_, &grad_weight_, &grad_bias_}) *part = std::exchange(next, next + padded_);
    widen_all(p.weight, weight_);
    if (p.bias) widen_all(p.bias, bias_);
    for (int64_t i = 0; i < L; ++i) last_[i] = A(padded_ - L + i < p.C);
  }

  static size_t scratch(const LayerNormParams& p) { return 4 * padded(p) * sizeof(A); }

  void forward() {
    for_tokens([&](auto count, int64_t token) SOLA_LAMBDA { norm<count>(token); });
  }

  void backward(int64_t index) {
    for_tokens([&](auto count, int64_t token) SOLA_LAMBDA { gradients<count>(token); });
    A* sums = static_cast<A*>(p_.sums) + index * 2 * p_.C;
    std::memcpy(sums, grad_weight_, p_.C * sizeof(A));
    std::memcpy(sums + p_.C, grad_bias_, p_.C * sizeof(A));
  }

 private:
  // of `count` tokens
  template <int count>
  struct Moments {
    A mean[count], inverse[count];
  };

  static int64_t padded(const LayerNormParams& p) { return round_up<A>(p.C); }

  template <class T>
  SOLA_INLINE static T* at(const Rows& rows, int64_t token) {
    return static_cast<T*>(rows.data) + token * rows.stride;
  }

  void widen_all(const void* from, A* to) const {
    for_vectors<A>(p_.C, [&](auto whole, int64_t c, int64_t n) SOLA_LAMBDA {
      store(to + c, p_.wide ? read<whole>(static_cast<const A*>(from) + c, n)
                            : read<whole>(static_cast<const In*>(from) + c, n));
    });
  }

  // f(how many, the first), for all tokens
  template <class F>
  SOLA_INLINE void for_tokens(const F& f) const {
    if (p_.C * sizeof(In) <= kNarrowBytes) {
      for_tokens<kNarrowTokens>(f);
    } else {
      for_tokens<kWideTokens>(f);
    }
  }
  template <int most, class F>
  SOLA_INLINE void for_tokens(const F& f) const {
    int64_t token = place_.begin;
    for (; token + most <= place_.end; token += most) f(std::integral_constant<int, most>{}, token);
    for (; token < place_.end; ++token) f(std::integral_constant<int, 1>{}, token);
  }

  template <int count>
  SOLA_INLINE Moments<count> moments(int64_t token) const {
    const int64_t stride = p_.x.stride;
    const In* x = at<const In>(p_.x, token);
    Vec<A> sums[count] = {}, squares[count] = {};
    // memory is read and written token by token, as it lies there
    for (int i = 0; i < count; ++i) {
      for_vectors<A>(
          p_.C, [&](auto whole, int64_t c, int64_t n) SOLA_LAMBDA { sums[i] += read<whole>(x + i * stride + c, n); });
    }
    Moments<count> found;
    for (int i = 0; i < count; ++i) found.mean[i] = sum<A>(sums[i]) / channels_;
    for_vectors<A>(p_.C, [&](auto whole, int64_t c, int64_t n) SOLA_LAMBDA {
      for (int i = 0; i < count; ++i) {
        Vec<A> distance = read<whole>(x + i * stride + c, n) - found.mean[i];
        if (!whole) distance *= last_;
        squares[i] += distance * distance;
      }
    });
    const A eps = A(p_.eps);
    for (int i = 0; i < count; ++i) found.inverse[i] = A(1) / std::sqrt(sum<A>(squares[i]) / channels_ + eps);
    return found;
  }

  template <int count>
  SOLA_INLINE void norm(int64_t token) const {
    const auto of = moments<count>(token);
    const int64_t stride = p_.x.stride, out_stride = p_.out.stride;
    const In* x = at<const In>(p_.x, token);
    In* out = at<In>(p_.out, token);
    const A *weights = weight_, *biases = bias_;
    for (int i = 0; i < count; ++i) {
      for_vectors<A>(p_.C, [&](auto whole, int64_t c, int64_t n) SOLA_LAMBDA {
        const Vec<A> normal = (read<whole>(x + i * stride + c, n) - of.mean[i]) * of.inverse[i];
        write<whole>(out + i * out_stride + c, normal * load(weights + c) + load(biases + c), n);
      });
    }
  }

  // With x̂ = (x − mean)·r and g = w ⊙ dout: dx = r·(g − Σg/C − x̂ Σ(g ⊙ x̂)/C), dw = Σ dout ⊙ x̂ and db = Σ dout over
  // the tokens
  template <int count>
  SOLA_INLINE void gradients(int64_t token) const {
    const auto of = moments<count>(token);
    const int64_t stride = p_.x.stride, grad_stride = p_.grad_out.stride, out_stride = p_.grad_x.stride;
    const In *x = at<const In>(p_.x, token), *grad_out = at<const In>(p_.grad_out, token);
    A *grad_weight = grad_weight_, *grad_bias = grad_bias_;
    const A* weights = weight_;
    Vec<A> sums[count] = {}, products[count] = {};
    for_vectors<A>(p_.C, [&](auto whole, int64_t c, int64_t n) SOLA_LAMBDA {
      const Vec<A> weight = load(weights + c);
      Vec<A> of_weight = load(grad_weight + c), of_bias = load(grad_bias + c);
      for (int i = 0; i < count; ++i) {
        const Vec<A> normal = (read<whole>(x + i * stride + c, n) - of.mean[i]) * of.inverse[i];
        const Vec<A> grad = read<whole>(grad_out + i * grad_stride + c, n), weighted = grad * weight;
        of_weight += grad * normal;
        of_bias += grad;
        sums[i] += weighted;
        products[i] += weighted * normal;
      }
      store(grad_weight + c, of_weight);
      store(grad_bias + c, of_bias);
    });
    In* grad_x = at<In>(p_.grad_x, token);
    for (int i = 0; i < count; ++i) {
      const A from_mean = sum<A>(sums[i]) / channels_, from_norm = sum<A>(products[i]) / channels_;
      for_vectors<A>(p_.C, [&](auto whole, int64_t c, int64_t n) SOLA_LAMBDA {
        const Vec<A> normal = (read<whole>(x + i * stride + c, n) - of.mean[i]) * of.inverse[i];
        // as it was added up: what is its own mean must vanish
        const Vec<A> weighted = rounded(read<whole>(grad_out + i * grad_stride + c, n) * load(weights + c));
        write<whole>(grad_x + i * out_stride + c, of.inverse[i] * (weighted - from_mean - normal * from_norm), n);
      });
    }
  }

  const LayerNormParams& p_;
  const Place place_;
  const int64_t padded_;
  const A channels_;
  Vec<A> last_;
  A *weight_, *bias_, *grad_weight_, *grad_bias_;
};

size_t scratch(const LayerNormParams& p, const Task& task) {
  return with_input(task, [&]<class In>(In) { return LayerNorm<In>::scratch(p); });
}

void forward(const LayerNormParams& p, const Task& task, Place place) {
  with_input(task, [&]<class In>(In) { LayerNorm<In>(p, task, place).forward(); });
}

void backward(const LayerNormParams& p, const Task& task, Place place, int64_t index) {
  with_input(task, [&]<class In>(In) { LayerNorm<In>(p, task, place).backward(index); });
}

}  // namespace

extern const LayerNormKernels layer_norm;
const LayerNormKernels layer_norm{scratch, forward, backward};

}  // namespace sola::SOLA_ISA
