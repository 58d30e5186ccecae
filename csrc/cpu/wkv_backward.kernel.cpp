// bidirectional WKV, backward: a stretch of tokens of one block of channels
//
// With z = −log(normaliser), the weight of token i in the average at t is e^(k_i + z_t − (|t−i|−1) w), or
// e^(k_t + z_t + u) for itself. Sums over t therefore run as a scan of their own, with z for log-weights:
//
//   P_i = Σ_t e^(z_t …) dy_t     H_i = Σ_t e^(z_t …) h_t     with h = −dy · y
//   dv_i = e^(k_i) P_i           dk_i = v_i dv_i + e^(k_i) H_i
//   du = Σ_i e^(k_i + z_i + u) (v_i dy_i + h_i)
//   dw = −Σ_t e^(z_t) (dy_t Σ_i distance · weight · v_i + h_t Σ_i distance · weight)
//
// so dw needs the scan over the keys again, with its derivative. docs/math.md has the derivation.

#include "cpu/wkv.h"

namespace sola::SOLA_ISA {

template <class A>
struct BackwardStates {
  ScanState<A, 4> keys[2];  // entering from the left, from the right
  ScanState<A, 2> grads[2];
};

template <class In>
class WkvBackward {
  using A = Acc<In>;
  static constexpr int64_t W = kBlock<A>;
  static constexpr int L = kLanes<A>;

 public:
  WkvBackward(const WkvParams& p, const Task& task, int64_t channel, int64_t tokens, int64_t tiles)
      : p_(p), tiling_(p, channel), tokens_(tokens), arena_(task.scratch) {
    keys_.take_from(arena_, tokens, tiles);
    grads_.take_from(arena_, tokens, tiles);
    values_ = arena_.take<A>(kTileTokens * W);
    grad_out_ = arena_.take<A>(kTileTokens * W);
    grad_log_ = arena_.take<A>(kTileTokens * W);
    sums_ = arena_.take<A>(4 * kTileTokens * L);
    grad_k_ = arena_.take<A>(kTileTokens * W);
    grad_v_ = arena_.take<A>(kTileTokens * W);
    grad_decay_ = arena_.take<A>(W);
    grad_bonus_ = arena_.take<A>(W);
  }
  WkvBackward(const WkvParams& p, const Task& task, Stretch s)
      : WkvBackward(p, task, s.channel, s.end - s.begin, Tiling<A>(p, s.channel).tiles(s.end - s.begin)) {
    stretch_ = s;
  }

  size_t scratch() const { return arena_.used(); }

  void gather(BackwardStates<A>* states) {
    for (int side = 0; side < 2; ++side) {
      states->keys[side].clear();
      states->grads[side].clear();
    }
    load_weights();
    const int64_t tiles = tiling_.tiles(tokens_);
    // nothing lies behind the last stretch, nor before the first
    const bool last = stretch_.end == p_.N, first = stretch_.begin == 0;
    for (int64_t t = 0; !last && t < tiles; ++t) {
      move(t, Direction::left_to_right, states->keys[0], states->grads[0]);
    }
    for (int64_t t = tiles - 1; !first && t >= 0; --t) {
      move(t, Direction::right_to_left, states->keys[1], states->grads[1]);
    }
  }

  void connect_all(int64_t count, BackwardStates<A>* states) {
    const auto length = [&](int64_t s) { return s == count - 1 ? p_.N - s * tokens_ : tokens_; };
    for (int side = 0; side < 2; ++side) {
      keys_.left->clear();
      grads_.left->clear();
      for (int64_t step = 0; step < count; ++step) {
        const int64_t s = side == 0 ? step : count - 1 - step;
        connect(states[s].keys[side], *keys_.left, tiling_.channels(), length(s));
        connect(states[s].grads[side], *grads_.left, tiling_.channels(), length(s));
      }
    }
  }

  void run(const BackwardStates<A>* states) {
    load_weights();
    const int64_t tiles = tiling_.tiles(tokens_);
    keys_.enter(states ? states->keys : nullptr, states ? states->keys + 1 : nullptr, tiles);
    grads_.enter(states ? states->grads : nullptr, states ? states->grads + 1 : nullptr, tiles);
    for (int64_t t = tiles - 1; t > 0; --t) {
      keys_.rights[t - 1] = keys_.rights[t];
      grads_.rights[t - 1] = grads_.rights[t];
      move(t, Direction::right_to_left, keys_.rights[t - 1], grads_.rights[t - 1]);
    }
    fill(grad_decay_, W, A(0));
    fill(grad_bonus_, W, A(0));
    for (int64_t t = 0; t < tiles; ++t) {
      load_tile(t, Direction::left_to_right);
      for (int64_t c = 0; c < tiling_.channels().width; c += L) {
        emit_token_gradients(t, c);
        emit_decay_gradient(t, c);
      }
      write_tile(t);
    }
    const int64_t row = (stretch_.batch * p_.stretches + stretch_.index) * p_.C + tiling_.channel();
    convert_row(grad_decay_, tiling_.count(), static_cast<A*>(p_.grad_decay) + row, tiling_.count());
    convert_row(grad_bonus_, tiling_.count(), static_cast<A*>(p_.grad_bonus) + row, tiling_.count());
  }

 private:
  const In* tokens_of(const View& view, int64_t offset) const {
    return at<In>(view, stretch_.batch, stretch_.begin + offset, 0) + tiling_.channel();
  }

  const A* saved_of(const void* plane, int64_t offset) const {
    const int64_t row = stretch_.batch * p_.N + stretch_.begin + offset;
    return static_cast<const A*>(plane) + row * p_.C + tiling_.channel();
  }

  void load_weights() {
    load_block(tokens_of(p_.k, 0), p_.k.token, tokens_, tiling_.count(), keys_.weights);
    keys_.exponentiate_all(tiling_, tokens_);
    load_block(saved_of(p_.log_normaliser, 0), p_.C, tokens_, tiling_.count(), grads_.weights);
    for (int64_t i = 0; i < tokens_ * W; i += L) store(grads_.weights + i, -load(grads_.weights + i));
    grads_.exponentiate_all(tiling_, tokens_);
  }

  // v, dy and h = −dy · y
  void load_tile(int64_t t, Direction direction) {
    const int64_t first = tiling_.first(t), tokens = tiling_.length(t, tokens_), count = tiling_.count();
    load_block(tokens_of(p_.v, first), p_.v.token, tokens, count, values_, direction);
    load_block(tokens_of(p_.grad_out, first), p_.grad_out.token, tokens, count, grad_out_, direction);
    if (p_.exact_out) {
      load_block(saved_of(p_.exact_out, first), p_.C, tokens, count, grad_log_, direction);
    } else {
      load_block(tokens_of(p_.out, first), p_.out.token, tokens, count, grad_log_, direction);
    }
    for (int64_t i = 0; i < tokens * W; i += L) store(grad_log_ + i, -load(grad_log_ + i) * load(grad_out_ + i));
  }

  ScanTile<A> key_tile(int64_t t) const { return keys_.tile(tiling_, t, tokens_, values_, nullptr); }
  ScanTile<A> grad_tile(int64_t t) const { return grads_.tile(tiling_, t, tokens_, grad_out_, grad_log_); }

  void move(int64_t t, Direction direction, ScanState<A, 4>& keys, ScanState<A, 2>& grads) {
    load_tile(t, direction);
    advance(key_tile(t), tiling_.channels(), direction, keys);
    advance(grad_tile(t), tiling_.channels(), direction, grads);
  }

  // runs the right-hand scan first, keeping values `first` and `first` + 1, then the left-hand one with the visitor
  template <int K, class Visit>
  SOLA_INLINE void both_scans(const ScanSide<A, K>& side, const ScanTile<A>& tile, int64_t t, int64_t c, int first,
                              const Visit& visit) {
    const auto& channels = tiling_.channels();
    const Vec<A> M = load(tile.maximum + c);
    auto right = Lane<A, K>::load_from(side.rights[t], c), left = Lane<A, K>::load_from(*side.left, c);
    const Vec<A> left_reference = reference_in_tile(left, channels, M);
    const Vec<A> right_reference = reference_in_tile(right, channels, M);
    scan_tile(tile, channels, c, Direction::right_to_left, right, [&](int64_t p, const Lane<A, K>& lane) SOLA_LAMBDA {
      store(sums_ + 2 * p * L, lane.value[first]);
      store(sums_ + (2 * p + 1) * L, lane.value[first + 1]);
    });
    visit(left, left_reference, right_reference);
    left.store_to(*side.left, c);
  }

  void emit_token_gradients(int64_t t, int64_t c) {
    const auto tile = grad_tile(t);
    const auto& channels = tiling_.channels();
    const A* weights = keys_.weights + tiling_.first(t) * W + c;
    const Vec<A> key_maximum = load(keys_.maxima + t * W + c);
    Vec<A> grad_bonus = load(grad_bonus_ + c);
    both_scans(grads_, tile, t, c, 0, [&](Lane<A, 2>& left, Vec<A> left_reference, Vec<A> right_reference) SOLA_LAMBDA {
      const Vec<A> by_left = vexp(key_maximum + left_reference), by_right = vexp(key_maximum + right_reference);
      const Vec<A> by_own = vexp(key_maximum + load(tile.maximum + c) + load(channels.bonus + c));
      scan_tile(tile, channels, c, Direction::left_to_right, left, [&](int64_t p, const Lane<A, 2>& lane) SOLA_LAMBDA {
        const int64_t i = p * W + c;
        const Vec<A> key_weight = load(weights + p * W), v = load(values_ + i);
        const Vec<A> dy = load(grad_out_ + i), h = load(grad_log_ + i);
        const Vec<A> own = by_own * load(tile.weight + i);
        const Vec<A> P = by_left * lane.value[0] + by_right * load(sums_ + 2 * p * L) + own * dy;
        const Vec<A> H = by_left * lane.value[1] + by_right * load(sums_ + (2 * p + 1) * L) + own * h;
        store(grad_v_ + i, key_weight * P);
        store(grad_k_ + i, key_weight * (v * P + H));
        grad_bonus += key_weight * own * (v * dy + h);
      });
    });
    store(grad_bonus_ + c, grad_bonus);
  }

  void emit_decay_gradient(int64_t t, int64_t c) {
    const auto tile = key_tile(t);
    const auto& channels = tiling_.channels();
    const A* weights = grads_.weights + tiling_.first(t) * W + c;
    const Vec<A> grad_maximum = load(grads_.maxima + t * W + c);
    Vec<A> total{};
    both_scans(keys_, tile, t, c, 2, [&](Lane<A, 4>& left, Vec<A> left_reference, Vec<A> right_reference) SOLA_LAMBDA {
      const Vec<A> by_left = vexp(grad_maximum + left_reference), by_right = vexp(grad_maximum + right_reference);
      scan_tile(tile, channels, c, Direction::left_to_right, left, [&](int64_t p, const Lane<A, 4>& lane) SOLA_LAMBDA {
        const int64_t i = p * W + c;
        const Vec<A> numerator = by_left * lane.value[2] + by_right * load(sums_ + 2 * p * L);
        const Vec<A> denominator = by_left * lane.value[3] + by_right * load(sums_ + (2 * p + 1) * L);
        total += load(weights + p * W) * (load(grad_out_ + i) * numerator + load(grad_log_ + i) * denominator);
      });
    });
    store(grad_decay_ + c, load(grad_decay_ + c) - total);
  }

  void write_tile(int64_t t) {
    const int64_t first = stretch_.begin + tiling_.first(t), tokens = tiling_.length(t, tokens_);
    const int64_t channel = tiling_.channel(), count = tiling_.count();
    store_block(grad_k_, tokens, count, at<In>(p_.grad_k, stretch_.batch, first, 0) + channel, p_.grad_k.token);
    store_block(grad_v_, tokens, count, at<In>(p_.grad_v, stretch_.batch, first, 0) + channel, p_.grad_v.token);
  }

  const WkvParams& p_;
  Tiling<A> tiling_;
  int64_t tokens_;
  Stretch stretch_{};
  Arena arena_;
  ScanSide<A, 4> keys_;
  ScanSide<A, 2> grads_;
  A *values_, *grad_out_, *grad_log_, *sums_, *grad_k_, *grad_v_, *grad_decay_, *grad_bonus_;
};

static int64_t block(const Task& task) {
  return with_input(task, [&]<class In>(In) { return kBlock<Acc<In>>; });
}

static size_t scratch(const WkvParams& p, const Task& task, int64_t tokens) {
  return with_input(task, [&]<class In>(In) {
    return WkvBackward<In>(p, task, 0, tokens, most_tiles<Acc<In>>(p, tokens)).scratch();
  });
}

static size_t states(const Task& task) {
  return with_input(task, [&]<class In>(In) { return sizeof(BackwardStates<Acc<In>>); });
}

static void gather(const WkvParams& p, const Task& task, Stretch s, void* states) {
  with_input(task,
             [&]<class In>(In) { WkvBackward<In>(p, task, s).gather(static_cast<BackwardStates<Acc<In>>*>(states)); });
}

static void connect_all(const WkvParams& p, const Task& task, Stretch s, int64_t count, void* states) {
  with_input(task, [&]<class In>(In) {
    WkvBackward<In>(p, task, s).connect_all(count, static_cast<BackwardStates<Acc<In>>*>(states));
  });
}

static void run(const WkvParams& p, const Task& task, Stretch s, const void* states) {
  with_input(task, [&]<class In>(In) {
    WkvBackward<In>(p, task, s).run(static_cast<const BackwardStates<Acc<In>>*>(states));
  });
}

extern const WkvKernels wkv_backward;
const WkvKernels wkv_backward{block, scratch, states, gather, connect_all, run};

}  // namespace sola::SOLA_ISA
