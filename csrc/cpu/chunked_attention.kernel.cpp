// linear attention in chunks, with decay and causality: forward and backward of a segment of one head
//
// docs/math.md derives the states and the gradient of the decay.

// D head dim, V value head dim, padded to whole vectors as Dp and Vp; L length of a chunk, p place inside it

#include "cpu/chunked_attention.h"

namespace sola::SOLA_ISA {

// which of the states of isa.h is which
enum StateIndex { kKeysLeft = 0, kGradsRight = 1, kKeysRight = 2, kGradsLeft = 3 };

template <class In, class Mul>
class ChunkedAttention {
  using A = Acc<In>;

 public:
  ChunkedAttention(const ChunkedParams& p, const Task& task, Place place, bool backward)
      : p_(p),
        place_(place),
        segment_{place.begin, place.end, p.chunk},
        backward_(backward),
        arena_(task.scratch),
        tiles_(p, task, log_decay(), arena_),
        states_(task, p.size.D, p.size.V, p.chunk, log_decay(), arena_) {
    const int64_t chunks = segment_.chunks() + 1, size = states_.size();
    running_ = arena_.take<A>(2 * size);
    pairs_ = arena_.take<A>(p.chunk * tiles_.Cp);
    out_ = arena_.take<A>(p.chunk * tiles_.Vp);
    keys_right_ = p.causal ? nullptr : arena_.take<A>(chunks * size);
    if (!backward) return;
    grads_right_ = arena_.take<A>(chunks * size);
    grad_pairs_ = arena_.take<A>(p.chunk * tiles_.Cp);
    grad_n_ = arena_.take<A>(p.chunk * tiles_.Vp);
    grad_phi_q_ = arena_.take<A>(p.chunk * tiles_.Dp);
    grad_phi_k_ = arena_.take<A>(p.chunk * tiles_.Dp);
    grad_d_ = arena_.take<A>(p.chunk);
  }

  size_t scratch() const { return arena_.used(); }
  int64_t state_size() const { return states_.size(); }
  int64_t state_count() const { return (backward_ ? 2 : 1) * (p_.causal ? 1 : 2); }

  // ---- between segments

  // what the segment adds to each state
  void gather(A* states) {
    fill(states, state_count() * states_.size(), A(0));
    segment_.forwards([&](int64_t c) {
      load_keys(c);
      advance_keys(Side::left, c, slot(states, kKeysLeft));
      if (!backward_ || p_.causal) return;
      load_grads(c);
      advance_grads(Side::left, c, slot(states, kGradsLeft));
    });
    if (p_.causal && !backward_) return;
    segment_.backwards([&](int64_t c) {
      if (backward_) {
        load_grads(c);
        advance_grads(Side::right, c, slot(states, kGradsRight));
      }
      if (p_.causal) return;
      load_keys(c);
      advance_keys(Side::right, c, slot(states, kKeysRight));
    });
  }

  // entering state of each segment from what the others leave: in ← γ^tokens · in + left behind
  void connect(int64_t count, int64_t tokens, A* states) {
    const int64_t stride = state_count() * states_.size();
    const auto last = p_.size.N - (count - 1) * tokens;
    for (int64_t s = 0; s < count; ++s) {
      carry(states + s * stride, kKeysLeft, s == 0, s == count - 1 ? last : tokens);
      if (backward_ && !p_.causal) carry(states + s * stride, kGradsLeft, s == 0, s == count - 1 ? last : tokens);
    }
    for (int64_t s = count - 1; s >= 0; --s) {
      if (backward_) carry(states + s * stride, kGradsRight, s == count - 1, s == count - 1 ? last : tokens);
      if (!p_.causal) carry(states + s * stride, kKeysRight, s == count - 1, s == count - 1 ? last : tokens);
    }
  }

  // ---- forward of a segment

  void forward(const A* states) {
    enter(states, kKeysLeft, running_);
    if (!p_.causal) sweep_keys_right(states);
    segment_.forwards([&](int64_t c) {
      const int64_t first = segment_.first(c), rows = segment_.length(c);
      tiles_.load_q(place_, first, rows);
      load_keys(c);
      write_outputs(c);
      if (first + rows < segment_.end) advance_keys(Side::left, c, running_);
    });
  }

  // ---- backward of a segment

  double backward(const A* states) {
    grad_log_decay_ = 0;
    A* keys_left = running_;
    A* grads_left = running_ + states_.size();
    enter(states, kKeysLeft, keys_left);
    if (!p_.causal) {
      enter(states, kGradsLeft, grads_left);
      sweep_keys_right(states);
    }
    sweep_grads_right(states);
    segment_.forwards([&](int64_t c) {
      load_keys(c);
      load_grads(c);
      own_pairs(c);
      const A* keys_right = p_.causal ? nullptr : keys_right_ + c * states_.size();
      const A* grads_right = grads_right_ + c * states_.size();
      across(Side::left, c, keys_left, grads_right);
      if (!p_.causal) across(Side::right, c, keys_right, grads_left);
      write_gradients(c);
      if (segment_.first(c) + segment_.length(c) == segment_.end) return;
      advance_keys(Side::left, c, keys_left);
      if (!p_.causal) advance_grads(Side::left, c, grads_left);
    });
    return grad_log_decay_;
  }

 private:
  double log_decay() const { return p_.log_decay[place_.head]; }
  bool starts_head(int64_t c) const { return segment_.first(c) == 0; }
  bool ends_head(int64_t c) const { return segment_.first(c) + segment_.length(c) == p_.size.N; }

  // position of a state among those that this pass has
  A* slot(A* states, StateIndex index) const { return const_cast<A*>(slot(const_cast<const A*>(states), index)); }
  const A* slot(const A* states, StateIndex index) const {
    const int64_t place = backward_ ? index : index / 2;
    return states + place * states_.size();
  }

  void enter(const A* states, StateIndex index, A* to) {
    if (states) {
      std::memcpy(to, slot(states, index), states_.size() * sizeof(A));
    } else {
      fill(to, states_.size(), A(0));
    }
  }

  // running_ holds what has been gathered so far in this slot's direction
  void carry(A* states, StateIndex index, bool begin, int64_t tokens) {
    const int64_t size = states_.size();
    A* total = running_ + (index == kKeysLeft || index == kGradsRight ? 0 : size);
    if (begin) fill(total, size, A(0));
    const A factor = A(::exp(log_decay() * double(tokens)));
    A* state = slot(states, index);
    for (int64_t i = 0; i < size; i += kLanes<A>) {
      const Vec<A> here = load(state + i), entering = load(total + i);
      store(state + i, entering);
      store(total + i, entering * factor + here);
    }
  }

  void load_keys(int64_t c) {
    tiles_.load_k(place_, segment_.first(c), segment_.length(c));
    tiles_.load_v(place_, segment_.first(c), segment_.length(c));
  }

  // φ(q), dn = r dO and dd = −r dO·out, with r the inverse normaliser
  void load_grads(int64_t c) {
    const int64_t first = segment_.first(c), rows = segment_.length(c), V = p_.size.V, Vp = tiles_.Vp;
    tiles_.load_q(place_, first, rows);
    const In* grad = at<In>(p_.grad_out, place_.batch, first, place_.head);
    load_rows(grad, p_.grad_out.token, rows, V, grad_n_, Vp, tiles_.kAhead);
    fill(grad_d_, rows, A(0));
    for (int64_t r = 0; p_.normalize && r < rows; ++r) {
      const A inverse = reciprocal(tiles_.normaliser(place_, first)[r]);
      const In* out = at<In>(p_.out, place_.batch, first + r, place_.head);
      prefetch_rows(out + tiles_.kAhead * p_.out.token, p_.out.token, 1, V);
      const A along = dot(grad + r * p_.grad_out.token, out, V);
      grad_d_[r] = -inverse * along;
      scale_row(grad_n_ + r * Vp, Vp, inverse);
    }
  }

  void advance_keys(Side side, int64_t c, A* state) {
    states_.advance(side, tiles_.phi_k, tiles_.v, tiles_.Vp, nullptr, segment_.length(c), state);
  }
  void advance_grads(Side side, int64_t c, A* state) {
    states_.advance(side, tiles_.phi_q, grad_n_, tiles_.Vp, grad_d_, segment_.length(c), state);
  }

  // states at the right end of every chunk
  void sweep_keys_right(const A* states) {
    const int64_t last = segment_.chunks() - 1, size = states_.size();
    enter(states, kKeysRight, keys_right_ + last * size);
    for (int64_t c = last; c > 0; --c) {
      load_keys(c);
      std::memcpy(keys_right_ + (c - 1) * size, keys_right_ + c * size, size * sizeof(A));
      advance_keys(Side::right, c, keys_right_ + (c - 1) * size);
    }
  }
  void sweep_grads_right(const A* states) {
    const int64_t last = segment_.chunks() - 1, size = states_.size();
    enter(states, kGradsRight, grads_right_ + last * size);
    for (int64_t c = last; c > 0; --c) {
      load_grads(c);
      std::memcpy(grads_right_ + (c - 1) * size, grads_right_ + c * size, size * sizeof(A));
      advance_grads(Side::right, c, grads_right_ + (c - 1) * size);
    }
  }

  void write_outputs(int64_t c) {
    const auto& s = p_.size;
    const int64_t first = segment_.first(c), rows = segment_.length(c), Dp = tiles_.Dp, Vp = tiles_.Vp, Cp = tiles_.Cp;
    tiles_.multiply_pairs(tiles_.phi_q, tiles_.phi_k, Dp, s.D, rows, pairs_);
    A* sums = tiles_.normaliser(place_, first);
    for (int64_t r = 0; r < rows; ++r) {
      const A total = weigh_pairs(pairs_ + r * Cp, r);
      if (p_.normalize) sums[r] = total;
    }
    tiles_.multiply_by_pairs({pairs_, Cp, 1}, tiles_.v, Vp, rows, out_);
    if (!starts_head(c)) read_state(Side::left, running_, rows, sums);
    if (!p_.causal && !ends_head(c)) read_state(Side::right, keys_right_ + c * states_.size(), rows, sums);
    for (int64_t r = 0; p_.normalize && r < rows; ++r) {
      sums[r] += A(p_.eps);
      scale_row(out_ + r * Vp, Vp, reciprocal(sums[r]));
    }
    store_rows(out_, Vp, rows, s.V, at<In>(p_.out, place_.batch, first, place_.head), p_.out.token);
  }

  // one row of pairs times its weights; returns the sum. A weight of 0 hides whatever the pair holds, NaN too
  A weigh_pairs(A* row, int64_t r) {
    const Vec<A> zero{};
    Vec<A> total{};
    const A* weights = tiles_.pair_weights(r);
    for (int64_t j = 0; j < tiles_.Cp; j += kLanes<A>) {
      const Vec<A> weight = load(weights + j);
      const Vec<A> weighted = weight == zero ? zero : load(row + j) * weight;
      store(row + j, weighted);
      total += weighted;
    }
    return sum<A>(total);
  }

  // Σ_j |r − j| · pairs_j · grads_j
  double weighted_distance(const A* pairs, const A* grads, int64_t r) {
    Vec<A> total{};
    const A* distances = tiles_.distances(r);
    for (int64_t j = 0; j < tiles_.Cp; j += kLanes<A>) total += load(pairs + j) * load(grads + j) * load(distances + j);
    return double(sum<A>(total));
  }

  // adds φ(q) · state to the outputs and its companion to the normaliser
  void read_state(Side side, const A* state, int64_t rows, A* sums) {
    const A* product = states_.read(tiles_.phi_q, state, rows);
    for (int64_t r = 0; r < rows; ++r) {
      const A weight = states_.reads(side, r, rows);
      add_row(product + r * tiles_.Vp, out_ + r * tiles_.Vp, tiles_.Vp, weight);
      if (p_.normalize) sums[r] += weight * dot(tiles_.phi_q + r * tiles_.Dp, states_.rounded_companion(), tiles_.Dp);
    }
  }

  // With T = φ(q) φ(k)ᵀ and X = dn vᵀ + dd, both weighted: dφ(q) = X φ(k), dφ(k) = Xᵀ φ(q), dv = Tᵀ dn
  void own_pairs(int64_t c) {
    const auto& s = p_.size;
    const int64_t rows = segment_.length(c), Dp = tiles_.Dp, Vp = tiles_.Vp, Cp = tiles_.Cp;
    tiles_.multiply_pairs(tiles_.phi_q, tiles_.phi_k, Dp, s.D, rows, pairs_);
    tiles_.multiply_pairs(grad_n_, tiles_.v, Vp, s.V, rows, grad_pairs_);
    for (int64_t r = 0; r < rows; ++r) {
      A* grads = grad_pairs_ + r * Cp;
      // the columns beyond the chunk meet zeros in T
      for (int64_t j = 0; j < Cp; j += kLanes<A>) store(grads + j, load(grads + j) + grad_d_[r]);
      weigh_pairs(pairs_ + r * Cp, r);
      if (p_.decay_grad) grad_log_decay_ += weighted_distance(pairs_ + r * Cp, grads, r);
      weigh_pairs(grads, r);
    }
    tiles_.multiply_by_pairs({grad_pairs_, Cp, 1}, tiles_.phi_k, Dp, rows, grad_phi_q_);
    tiles_.multiply_by_pairs({grad_pairs_, 1, Cp}, tiles_.phi_q, Dp, rows, grad_phi_k_);
    tiles_.multiply_by_pairs({pairs_, 1, Cp}, grad_n_, Vp, rows, out_);
  }

  // pairs whose key lies on `side` of the query, in another chunk: queries read the keys' state of that side, keys read
  // the gradients' state of the other side
  void across(Side side, int64_t c, const A* keys, const A* grads) {
    const int64_t rows = segment_.length(c), Vp = tiles_.Vp;
    const Side other = side == Side::left ? Side::right : Side::left;
    const bool queries_read = side == Side::left ? !starts_head(c) : !ends_head(c);
    const bool keys_read = side == Side::left ? !ends_head(c) : !starts_head(c);
    if (queries_read) {
      const A* product = states_.read_transposed(grad_n_, Vp, keys, rows);
      add_parts(side, product, grad_d_, states_.companion(keys), tiles_.phi_q, rows, 1, grad_phi_q_);
    }
    if (keys_read) {
      const A* product = states_.read_transposed(tiles_.v, Vp, grads, rows);
      add_parts(other, product, nullptr, states_.companion(grads), tiles_.phi_k, rows, 0, grad_phi_k_);
      const A* values = states_.read(tiles_.phi_k, grads, rows);
      for (int64_t r = 0; r < rows; ++r) {
        add_row(values + r * Vp, out_ + r * Vp, Vp, states_.reads(other, r, rows));
      }
    }
    if (p_.decay_grad && queries_read && keys_read) {
      grad_log_decay_ += double(rows) * double(states_.power(rows + 1)) * long_dot(grads, keys, states_.size());
    }
  }

  // gradient += weight · (product + coefficient · companion) by rows. The weight's own derivative in log γ brings the
  // distance to the chunk's edge: p + 1 for readers on the left, one less for tokens that feed a state.
  void add_parts(Side side, const A* product, const A* coefficients, const A* companion, const A* phi, int64_t rows,
                 int64_t edge, A* gradient) {
    const int64_t Dp = tiles_.Dp;
    for (int64_t r = 0; r < rows; ++r) {
      const A weight = states_.reads(side, r, rows), coefficient = coefficients ? coefficients[r] : A(1);
      const A* phi_row = phi + r * Dp;
      add_row(product + r * Dp, gradient + r * Dp, Dp, weight);
      add_row(companion, gradient + r * Dp, Dp, weight * coefficient);
      if (!p_.decay_grad) continue;
      const A along = dot(phi_row, product + r * Dp, Dp) + coefficient * dot(phi_row, companion, Dp);
      const int64_t distance = (side == Side::left ? r : rows - 1 - r) + edge;
      grad_log_decay_ += double(distance) * double(weight) * double(along);
    }
  }

  void write_gradients(int64_t c) {
    const auto& s = p_.size;
    const int64_t first = segment_.first(c), rows = segment_.length(c);
    store_mapped_gradient(p_.map, grad_phi_q_, tiles_.phi_q, rows, s.D, tiles_.Dp,
                          at<In>(p_.grad_q, place_.batch, first, place_.head), p_.grad_q.token);
    store_mapped_gradient(p_.map, grad_phi_k_, tiles_.phi_k, rows, s.D, tiles_.Dp,
                          at<In>(p_.grad_k, place_.batch, first, place_.head), p_.grad_k.token);
    store_rows(out_, tiles_.Vp, rows, s.V, at<In>(p_.grad_v, place_.batch, first, place_.head), p_.grad_v.token);
  }

  const ChunkedParams& p_;
  Place place_;
  Segment segment_;
  bool backward_;
  Arena arena_;
  ChunkTiles<In, Mul> tiles_;
  ChunkStates<Mul, A> states_;
  A *running_, *pairs_, *out_, *keys_right_ = nullptr, *grads_right_ = nullptr, *grad_pairs_ = nullptr;
  A *grad_n_ = nullptr, *grad_phi_q_ = nullptr, *grad_phi_k_ = nullptr, *grad_d_ = nullptr;
  double grad_log_decay_ = 0;
};

static size_t scratch(const ChunkedParams& p, const Task& task, int64_t tokens, bool backward) {
  return with_types(task, [&]<class In, class Mul>(Types<In, Mul>) {
    return ChunkedAttention<In, Mul>(p, task, {0, 0, 0, tokens}, backward).scratch();
  });
}

static int64_t state(const ChunkedParams& p, const Task& task) {
  return with_types(task, [&]<class In, class Mul>(Types<In, Mul>) {
    return ChunkedAttention<In, Mul>(p, task, {0, 0, 0, 1}, false).state_size();
  });
}

static void gather(const ChunkedParams& p, const Task& task, Place place, bool backward, void* states) {
  with_types(task, [&]<class In, class Mul>(Types<In, Mul>) {
    ChunkedAttention<In, Mul>(p, task, place, backward).gather(static_cast<Acc<In>*>(states));
  });
}

static void connect(const ChunkedParams& p, const Task& task, Place place, bool backward, int64_t count, int64_t tokens,
                    void* states) {
  with_types(task, [&]<class In, class Mul>(Types<In, Mul>) {
    ChunkedAttention<In, Mul>(p, task, place, backward).connect(count, tokens, static_cast<Acc<In>*>(states));
  });
}

static void forward(const ChunkedParams& p, const Task& task, Place place, const void* states) {
  with_types(task, [&]<class In, class Mul>(Types<In, Mul>) {
    ChunkedAttention<In, Mul>(p, task, place, false).forward(static_cast<const Acc<In>*>(states));
  });
}

static double backward(const ChunkedParams& p, const Task& task, Place place, const void* states) {
  return with_types(task, [&]<class In, class Mul>(Types<In, Mul>) {
    return ChunkedAttention<In, Mul>(p, task, place, true).backward(static_cast<const Acc<In>*>(states));
  });
}

extern const ChunkedKernels chunked_attention;
const ChunkedKernels chunked_attention{scratch, state, gather, connect, forward, backward};

}  // namespace sola::SOLA_ISA
