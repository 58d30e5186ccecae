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

namespace sola::SOLA_ISA {

enum class Side { left, right };

template <class A>
class ChunkStates {
 public:
  ChunkStates(const Task& task, int64_t D, int64_t V, int64_t chunk, double log_decay, Arena& arena)
      : task_(task), D_(D), V_(V), Dp_(round_up<A>(D)), Vp_(round_up<A>(V)) {
    powers_ = arena.take<A>(chunk + 2);
    weighted_ = arena.take<A>(chunk * Dp_);
    product_ = arena.take<A>(chunk * (Dp_ > Vp_ ? Dp_ : Vp_));
    transposed_ = arena.take<A>(V * Dp_);
    factors_ = arena.take<A>(Vp_);
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
    scale_row(companion, Dp_, powers_[length]);
    for (int64_t p = 0; p < length; ++p) {
      const A weight = feeds(side, p, length);
      for (int64_t i = 0; i < Dp_; i += kLanes<A>) store(weighted_ + p * Dp_ + i, load(x + p * Dp_ + i) * weight);
      add_row(weighted_ + p * Dp_, companion, Dp_, coefficients ? coefficients[p] : A(1));
    }
    fill(factors_, Vp_, powers_[length]);
    gemm(task_, Product<A>{D_, Vp_, length, {weighted_, 1, Dp_}, y, y_stride, state, Vp_, factors_},
         Into::scale_columns);
  }

  // x · state, length × Vp; the caller weighs the rows
  const A* read(const A* x, const A* state, int64_t length) {
    gemm(task_, Product<A>{length, Vp_, D_, {x, Dp_, 1}, state, Vp_, product_, Vp_}, Into::overwrite);
    return product_;
  }

  // y · stateᵀ, length × Dp
  const A* read_transposed(const A* y, int64_t y_stride, const A* state, int64_t length) {
    transpose_rows(state, Vp_, D_, V_, transposed_, Dp_);
    for (int64_t v = 0; v < V_; ++v) fill(transposed_ + v * Dp_ + D_, Dp_ - D_, A(0));
    gemm(task_, Product<A>{length, Dp_, V_, {y, y_stride, 1}, transposed_, Dp_, product_, Dp_}, Into::overwrite);
    return product_;
  }

  const A* companion(const A* state) const { return state + D_ * Vp_; }

 private:
  const Task& task_;
  int64_t D_, V_, Dp_, Vp_;
  A *powers_, *weighted_, *product_, *transposed_, *factors_;
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
template <class In>
class ChunkTiles {
  using A = Acc<In>;

 public:
  ChunkTiles(const ChunkedParams& p, const Task& task, double log_decay, Arena& arena)
      : p(p), task(task), Dp(round_up<A>(p.size.D)), Vp(round_up<A>(p.size.V)), Cp(round_up<A>(p.chunk)) {
    phi_q = arena.take<A>(p.chunk * Dp);
    phi_k = arena.take<A>(p.chunk * Dp);
    v = arena.take<A>(p.chunk * Vp);
    sideways_ = arena.take<A>((p.size.D > p.size.V ? p.size.D : p.size.V) * Cp);
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
    map_rows(p.map, at<In>(p.q, place.batch, first, place.head), p.q.token, rows, p.size.D, phi_q, Dp);
  }
  void load_k(Place place, int64_t first, int64_t rows) {
    map_rows(p.map, at<In>(p.k, place.batch, first, place.head), p.k.token, rows, p.size.D, phi_k, Dp);
  }
  void load_v(Place place, int64_t first, int64_t rows) {
    load_rows(at<In>(p.v, place.batch, first, place.head), p.v.token, rows, p.size.V, v, Vp);
  }

  // left (rows × depth) · rightᵀ (depth × rows) for tiles of `stride`, into `pairs` with stride Cp
  void multiply_pairs(const A* left, const A* right, int64_t stride, int64_t depth, int64_t rows, A* pairs) {
    if (rows < Cp) fill(sideways_, depth * Cp, A(0));
    transpose_rows(right, stride, rows, depth, sideways_, Cp);
    gemm(task, Product<A>{rows, Cp, depth, {left, stride, 1}, sideways_, Cp, pairs, Cp}, Into::overwrite);
  }

  // the normaliser of a head's tokens, kept for the backward; null when there is none
  A* normaliser(Place place, int64_t first) const {
    if (!p.normalize) return nullptr;
    return static_cast<A*>(p.normaliser) + (place.batch * p.size.H + place.head) * p.size.N + first;
  }

  const ChunkedParams& p;
  const Task& task;
  int64_t Dp, Vp, Cp;
  A *phi_q, *phi_k, *v;

 private:
  A *sideways_, *pair_weights_, *distances_;
};

}  // namespace sola::SOLA_ISA
