// tokens mixed with their neighbours on the grid, m ⊙ x + (1 − m) ⊙ s for several m at once
//
// s has the channels of group 0 from the token at the left, of 1 from the right, of 2 from above, of 3 from below,
// zeros beyond the edge, and what is left over from the token itself. A vector of channels may belong to several
// groups; it is then read from each of their tokens, and the lanes are put together.

#include "cpu/channels.h"
#include "cpu/isa.h"
#include "cpu/tiles.h"

namespace sola::SOLA_ISA {
namespace {

constexpr int kGroups = 5;
// where group g comes from: rows and columns to step
constexpr int64_t kRows[kGroups] = {0, 0, -1, 1, 0}, kColumns[kGroups] = {-1, 1, 0, 0, 0};

template <class In>
class ShiftMix {
  using A = Acc<In>;
  using Sources = const In* [kGroups];
  static constexpr int64_t L = kLanes<A>;
  using Lanes = Vec<std::conditional_t<sizeof(A) == 8, int64_t, int32_t>>;

 public:
  ShiftMix(const ShiftMixParams& p, const Task& task, Place place) : p_(p), place_(place) {
    for (int g = 0; g < kGroups; ++g) first_[g] = g * (p.C / 4);
    for (int i = 0; i < L; ++i) lanes_[i] = i;
    sums_ = reinterpret_cast<A*>(task.scratch);
    zeros_ = reinterpret_cast<In*>(sums_ + p.mixes * padded(p));
    std::memset(task.scratch, 0, scratch(p));
  }

  static size_t scratch(const ShiftMixParams& p) { return (p.mixes + 1) * padded(p) * sizeof(A); }

  void forward() {
    for_tokens([&](int64_t row, int64_t column) {
      const In* x = at<In>(p_.x, row, column);
      Sources from;
      find(p_.x, row, column, 1, from);
      In* out[kMostMixes];
      for (int i = 0; i < p_.mixes; ++i) out[i] = at<In>(p_.mixed[i], row, column);
      for_vectors<A>(p_.C, [&](auto whole, int64_t c, int64_t n) SOLA_LAMBDA {
        const Vec<A> own = read<whole>(x + c, n), other = gather<whole>(from, c, n);
        for (int i = 0; i < p_.mixes; ++i) {
          const Vec<A> ratio = read<whole>(ratios(i) + c, n);
          write<whole>(out[i] + c, ratio * own + (A(1) - ratio) * other, n);
        }
      });
    });
  }

  // dx = Σ m ⊙ g + (1 − m) ⊙ (g of the token that took from this one), dm = Σ g ⊙ (x − s) over the tokens
  void backward(int64_t index) {
    for_tokens([&](int64_t row, int64_t column) {
      const In* x = at<In>(p_.x, row, column);
      Sources from, to[kMostMixes];
      find(p_.x, row, column, 1, from);
      const In* grads[kMostMixes];
      for (int i = 0; i < p_.mixes; ++i) {
        grads[i] = at<In>(p_.mixed[i], row, column);
        find(p_.mixed[i], row, column, -1, to[i]);
      }
      In* grad_x = at<In>(p_.grad_x, row, column);
      for_vectors<A>(p_.C, [&](auto whole, int64_t c, int64_t n) SOLA_LAMBDA {
        const Vec<A> distance = read<whole>(x + c, n) - gather<whole>(from, c, n);
        Vec<A> sum{};
        for (int i = 0; i < p_.mixes; ++i) {
          const Vec<A> ratio = read<whole>(ratios(i) + c, n), grad = read<whole>(grads[i] + c, n);
          sum += ratio * grad + (A(1) - ratio) * gather<whole>(to[i], c, n);
          A* total = sums_ + i * padded(p_) + c;
          store(total, load(total) + grad * distance);
        }
        write<whole>(grad_x + c, sum, n);
      });
    });
    A* totals = static_cast<A*>(p_.grad_ratios) + index * p_.mixes * p_.C;
    for (int i = 0; i < p_.mixes; ++i) std::memcpy(totals + i * p_.C, sums_ + i * padded(p_), p_.C * sizeof(A));
  }

 private:
  static int64_t padded(const ShiftMixParams& p) { return round_up<A>(p.C); }

  template <class F>
  void for_tokens(const F& f) const {
    int64_t row = place_.begin / p_.W, column = place_.begin % p_.W;
    for (int64_t token = place_.begin; token < place_.end; ++token) {
      f(row, column);
      if (++column == p_.W) {
        column = 0;
        ++row;
      }
    }
  }

  template <class T>
  SOLA_INLINE T* at(const View& view, int64_t row, int64_t column) const {
    return static_cast<T*>(view.data) + place_.batch * view.batch + row * view.token + column * view.head;
  }

  SOLA_INLINE const A* ratios(int i) const { return static_cast<const A*>(p_.ratios) + i * p_.C; }

  // the tokens from which a token takes its groups (way 1), or which take theirs from it (way -1)
  SOLA_INLINE void find(const View& view, int64_t row, int64_t column, int64_t way, Sources& from) const {
    for (int g = 0; g < kGroups; ++g) {
      const int64_t r = row + way * kRows[g], c = column + way * kColumns[g];
      const bool exists = r >= 0 && r < p_.H && c >= 0 && c < p_.W;
      from[g] = exists ? at<const In>(view, r, c) : zeros_;
    }
  }

  // channels [c, c + n) of what belongs to each
  template <bool whole>
  SOLA_INLINE Vec<A> gather(const Sources& from, int64_t c, int64_t n) const {
    int g = 0;
    while (g + 1 < kGroups && first_[g + 1] <= c) ++g;
    Vec<A> found = read<whole>(from[g] + c, n);
    for (++g; g < kGroups && first_[g] < c + n; ++g) {
      const Vec<A> next = read<whole>(from[g] + c, n);
      found = lanes_ >= Lanes{} + std::remove_reference_t<decltype(lanes_[0])>(first_[g] - c) ? next : found;
    }
    return found;
  }

  const ShiftMixParams& p_;
  const Place place_;
  int64_t first_[kGroups];
  Lanes lanes_;
  A* sums_;
  In* zeros_;
};

size_t scratch(const ShiftMixParams& p, const Task& task) {
  return with_input(task, [&]<class In>(In) { return ShiftMix<In>::scratch(p); });
}

void forward(const ShiftMixParams& p, const Task& task, Place place) {
  with_input(task, [&]<class In>(In) { ShiftMix<In>(p, task, place).forward(); });
}

void backward(const ShiftMixParams& p, const Task& task, Place place, int64_t index) {
  with_input(task, [&]<class In>(In) { ShiftMix<In>(p, task, place).backward(index); });
}

}  // namespace

extern const ShiftMixKernels shift_mix;
const ShiftMixKernels shift_mix{scratch, forward, backward};

}  // namespace sola::SOLA_ISA
