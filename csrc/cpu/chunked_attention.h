// linear attention in chunks: what forward and backward share
//
// A chunk [s, e) of length L multiplies its own pairs out and meets the rest of the sequence through states. With
// γ = exp(log_decay) and the place p = i − s inside the chunk, for keys x and values y,
//
//   from the left    H(s) = Σ_{j<s} γ^(s−1−j) x_jᵀ y_j     read by i with γ^(p+1)     H(e) = γ^L H(s) + Σ γ^(L−1−p) xᵀ
//   y from the right   H(e) = Σ_{j≥e} γ^(j−e)  x_jᵀ y_j      read by i with γ^(L−p)     H(s) = γ^L H(e) + Σ γ^p xᵀ y
//
// so the two directions differ by mirroring p. A state carries its scalar companion too: Σ γ^… c_j x_j with one
// coefficient per token (1 for the normaliser, the gradient of the denominator in the backward).

// D head dim, V value head dim, padded to whole vectors as Dp and Vp; a state is D × Vp numbers followed by Dp
#pragma once

#include "cpu/linear.h"
#include "cpu/multiplier.h"

namespace sola::SOLA_ISA {

enum class Side { left, right };

template <class Mul, class A>
class ChunkStates {
 public:
  ChunkStates(const Task& task, int64_t D, int64_t V, int64_t chunk, double log_decay, Arena& arena)
      : D_(D),
        V_(V),
        Dp_(round_up<A>(D)),
        Vp_(round_up<A>(V)),
        multiplier_(task, arena, std::max(chunk + 1, std::max(Dp_, Vp_)) * std::max(Dp_, Vp_),
                    std::max(chunk + 1, Dp_) * std::max(Dp_, Vp_)) {
    powers_ = arena.take<A>(chunk + 2);
    weighted_ = arena.take<A>(chunk * Dp_);
    product_ = arena.take<A>(chunk * std::max(Dp_, Vp_));
    factors_ = arena.take<A>(Vp_);
    rounded_ = arena.take<A>(Dp_);
    for (int64_t p = 0; arena.backed() && p < chunk + 2; ++p) powers_[p] = A(::exp(log_decay * double(p)));
  }

  int64_t size() const { return D_ * Vp_ + Dp_; }
  A power(int64_t p) const { return powers_[p]; }

  // weight with which the token at place p of a chunk of `length` reads the state of one side
  A reads(Side side, int64_t p, int64_t length) const { return powers_[side == Side::left ? p + 1 : length - p]; }
  // weight with which it feeds the state that leaves the chunk on the other side
  A feeds(Side side, int64_t p, int64_t length) const { return powers_[side == Side::left ? length - 1 - p : p]; }

  // state of `side` across the chunk: γ^L state + Σ weight xᵀ y, companion γ^L c + Σ weight coefficient x
  void advance(Side side, const A* x, const A* y, int64_t y_stride, const A* coefficients, int64_t length, A* state) {
    A* companion = state + D_ * Vp_;
    for (int64_t p = 0; p < length; ++p) {
      const A weight = feeds(side, p, length);
      for (int64_t i = 0; i < Dp_; i += kLanes<A>) store(weighted_ + p * Dp_ + i, load(x + p * Dp_ + i) * weight);
    }
    scale_row(companion, Dp_, powers_[length]);
    add_rows(weighted_, length, coefficients, companion, Dp_);
    fill(factors_, Vp_, powers_[length]);
    multiplier_.set_left({weighted_, 1, Dp_}, D_, length);
    multiplier_.set_right(y, y_stride, length, Vp_);
    multiplier_.run(0, D_, state, Vp_, Into::scale_columns, factors_);
  }

  // x · state, length × Vp, and as rounded_companion() the companion as x meets it; the caller weighs the rows
  const A* read(const A* x, const A* state, int64_t length) {
    multiplier_.set_left({x, Dp_, 1}, length, D_);
    multiplier_.set_right(state, Vp_, D_, Vp_);
    multiplier_.run(0, length, product_, Vp_, Into::overwrite);
    round_row<Mul>(companion(state), rounded_, Dp_);
    return product_;
  }
  const A* rounded_companion() const { return rounded_; }

  // y · stateᵀ, length × Dp
  const A* read_transposed(const A* y, int64_t y_stride, const A* state, int64_t length) {
    multiplier_.set_left({y, y_stride, 1}, length, V_);
    multiplier_.set_right_transposed(state, Vp_, V_, D_, Dp_);
    multiplier_.run(0, length, product_, Dp_, Into::overwrite);
    return product_;
  }

  const A* companion(const A* state) const { return state + D_ * Vp_; }

 private:
  int64_t D_, V_, Dp_, Vp_;
  Multiplier<Mul, A> multiplier_;
  A *powers_, *weighted_, *product_, *factors_, *rounded_;
};

// the chunks of one segment, the share of a head that one task works on
struct Segment {
  int64_t begin, end, chunk;

  int64_t chunks() const { return (end - begin + chunk - 1) / chunk; }
  int64_t first(int64_t c) const { return begin + c * chunk; }
  int64_t length(int64_t c) const { return end - first(c) < chunk ? end - first(c) : chunk; }

  template <class F>
  void forwards(const F& f) const {
    for (int64_t c = 0; c < chunks(); ++c) f(c);
  }
  template <class F>
  void backwards(const F& f) const {
    for (int64_t c = chunks() - 1; c >= 0; --c) f(c);
  }
};

// one chunk's tokens in tiles, and the weights of its own pairs
template <class In, class Mul>
class ChunkTiles {
  using A = Acc<In>;

 public:
  // rows to ask for early: a row of a head often lies on a page of its own
  static constexpr int64_t kAhead = 8;

  ChunkTiles(const ChunkedParams& p, const Task& task, double log_decay, Arena& arena)
      : p(p),
        Dp(round_up<A>(p.size.D)),
        Vp(round_up<A>(p.size.V)),
        Cp(round_up<A>(p.chunk)),
        multiplier_(task, arena, Cp * std::max(Cp, std::max(Dp, Vp)), Cp * std::max(Dp, Vp)) {
    phi_q = arena.take<A>(p.chunk * Dp);
    phi_k = arena.take<A>(p.chunk * Dp);
    v = arena.take<A>(p.chunk * Vp);
    // entry j − i + chunk belongs to the pair (i, j), so every row of pairs reads a contiguous piece
    const int64_t entries = p.chunk + Cp;
    pair_weights_ = arena.take<A>(entries);
    distances_ = arena.take<A>(entries);
    for (int64_t i = 0; arena.backed() && i < entries; ++i) {
      const int64_t offset = i - p.chunk, distance = offset < 0 ? -offset : offset;
      distances_[i] = A(distance);
      pair_weights_[i] = p.causal && offset > 0 ? A(0) : A(::exp(log_decay * double(distance)));
    }
  }

  // γ^|i−j| for j = 0, 1, …, or 0 for the future; and |i−j|
  const A* pair_weights(int64_t i) const { return pair_weights_ + p.chunk - i; }
  const A* distances(int64_t i) const { return distances_ + p.chunk - i; }

  void load_q(Place place, int64_t first, int64_t rows) {
    map_rows<Mul>(p.map, at<In>(p.q, place.batch, first, place.head), p.q.token, rows, p.size.D, phi_q, Dp, kAhead);
  }
  void load_k(Place place, int64_t first, int64_t rows) {
    map_rows<Mul>(p.map, at<In>(p.k, place.batch, first, place.head), p.k.token, rows, p.size.D, phi_k, Dp, kAhead);
  }
  void load_v(Place place, int64_t first, int64_t rows) {
    load_rows(at<In>(p.v, place.batch, first, place.head), p.v.token, rows, p.size.V, v, Vp, kAhead);
  }

  // left (rows × depth) · rightᵀ (depth × rows) for tiles of `stride`, into `pairs` with stride Cp
  void multiply_pairs(const A* left, const A* right, int64_t stride, int64_t depth, int64_t rows, A* pairs) {
    multiplier_.set_left({left, stride, 1}, rows, depth);
    multiplier_.set_right_transposed(right, stride, depth, rows, Cp);
    multiplier_.run(0, rows, pairs, Cp, Into::overwrite);
  }

  // weights of pairs (rows × rows) · right (rows × width)
  void multiply_by_pairs(Left<A> pairs, const A* right, int64_t width, int64_t rows, A* to) {
    multiplier_.set_left(pairs, rows, rows);
    multiplier_.set_right(right, width, rows, width);
    multiplier_.run(0, rows, to, width, Into::overwrite);
  }

  // the normaliser of a head's tokens, kept for the backward; null when there is none
  A* normaliser(Place place, int64_t first) const {
    if (!p.normalize) return nullptr;
    return static_cast<A*>(p.normaliser) + (place.batch * p.size.H + place.head) * p.size.N + first;
  }

  const ChunkedParams& p;
  int64_t Dp, Vp, Cp;
  A *phi_q, *phi_k, *v;

 private:
  Multiplier<Mul, A> multiplier_;
  A *pair_weights_, *distances_;
};

}  // namespace sola::SOLA_ISA
