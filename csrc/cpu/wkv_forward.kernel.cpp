// bidirectional WKV, forward: a stretch of tokens of one block of channels
//
//   out_t = (left_t + right_t + e^(u + k_t) v_t) / (the same with v = 1)

#include "cpu/wkv.h"

namespace sola::SOLA_ISA {

template <class In>
class WkvForward {
  using A = Acc<In>;
  using State = ScanState<A, 2>;
  static constexpr int64_t W = kBlock<A>;
  static constexpr int L = kLanes<A>;

 public:
  WkvForward(const WkvParams& p, const Task& task, int64_t channel, int64_t tokens, int64_t tiles)
      : p_(p), tiling_(p, channel), tokens_(tokens), arena_(task.scratch) {
    keys_.take_from(arena_, tokens, tiles);
    values_ = arena_.take<A>(kTileTokens * W);
    sums_ = arena_.take<A>(2 * kTileTokens * L);
    out_ = arena_.take<A>(kTileTokens * W);
    logs_ = arena_.take<A>(kTileTokens * W);
  }
  WkvForward(const WkvParams& p, const Task& task, Stretch s)
      : WkvForward(p, task, s.channel, s.end - s.begin, Tiling<A>(p, s.channel).tiles(s.end - s.begin)) {
    batch_ = s.batch;
    begin_ = s.begin;
  }

  size_t scratch() const { return arena_.used(); }

  // sums of the stretch by itself, from the left and from the right
  void gather(State* states) {
    states[0].clear();
    states[1].clear();
    load_keys();
    const int64_t tiles = tiling_.tiles(tokens_);
    // nothing lies behind the last stretch, nor before the first
    const bool last = begin_ + tokens_ == p_.N, first = begin_ == 0;
    for (int64_t t = 0; !last && t < tiles; ++t) move(t, Direction::left_to_right, states[0]);
    for (int64_t t = tiles - 1; !first && t >= 0; --t) move(t, Direction::right_to_left, states[1]);
  }

  // `count` stretches of this one's length, the last one shorter
  void connect_all(int64_t count, State* states) {
    const auto length = [&](int64_t s) { return s == count - 1 ? p_.N - s * tokens_ : tokens_; };
    keys_.left->clear();
    for (int64_t s = 0; s < count; ++s) connect(states[2 * s], *keys_.left, tiling_.channels(), length(s));
    keys_.left->clear();
    for (int64_t s = count - 1; s >= 0; --s) connect(states[2 * s + 1], *keys_.left, tiling_.channels(), length(s));
  }

  void run(const State* states) {
    load_keys();
    const int64_t tiles = tiling_.tiles(tokens_);
    keys_.enter(states, states + 1, tiles);
    for (int64_t t = tiles - 1; t > 0; --t) {
      keys_.rights[t - 1] = keys_.rights[t];
      move(t, Direction::right_to_left, keys_.rights[t - 1]);
    }
    for (int64_t t = 0; t < tiles; ++t) {
      const auto tile = load_tile(t, Direction::left_to_right);
      for (int64_t c = 0; c < tiling_.channels().width; c += L) emit(tile, keys_.rights[t], c);
      write_tile(begin_ + tiling_.first(t), tile.tokens);
    }
  }

 private:
  void load_keys() {
    const In* k = at<In>(p_.k, batch_, begin_, 0) + tiling_.channel();
    load_block(k, p_.k.token, tokens_, tiling_.count(), keys_.weights);
    keys_.exponentiate_all(tiling_, tokens_);
  }

  ScanTile<A> load_tile(int64_t t, Direction direction) {
    const In* v = at<In>(p_.v, batch_, begin_ + tiling_.first(t), 0) + tiling_.channel();
    load_block(v, p_.v.token, tiling_.length(t, tokens_), tiling_.count(), values_, direction);
    return keys_.tile(tiling_, t, tokens_, values_, nullptr);
  }

  void move(int64_t t, Direction direction, State& state) {
    advance(load_tile(t, direction), tiling_.channels(), direction, state);
  }

  void emit(const ScanTile<A>& tile, const State& entering, int64_t c) {
    const auto& channels = tiling_.channels();
    auto right = Lane<A, 2>::load_from(entering, c), left = Lane<A, 2>::load_from(*keys_.left, c);
    const Vec<A> M = load(tile.maximum + c), own = M + load(channels.bonus + c);
    const Vec<A> left_reference = reference_in_tile(left, channels, M);
    const Vec<A> right_reference = reference_in_tile(right, channels, M);
    scan_tile(tile, channels, c, Direction::right_to_left, right, [&](int64_t p, const Lane<A, 2>& lane) SOLA_LAMBDA {
      store(sums_ + 2 * p * L, lane.value[0]);
      store(sums_ + (2 * p + 1) * L, lane.value[1]);
    });
    // one reference for the three parts, the same all over the tile
    const Vec<A> reference = vmax(vmax(left_reference, right_reference), own);
    const Vec<A> by_left = vexp(left_reference - reference), by_right = vexp(right_reference - reference);
    const Vec<A> by_own = vexp(own - reference);
    const bool keep_logs = p_.log_normaliser != nullptr;
    scan_tile(tile, channels, c, Direction::left_to_right, left, [&](int64_t p, const Lane<A, 2>& lane) SOLA_LAMBDA {
      const int64_t i = p * W + c;
      const Vec<A> weight = by_own * load(tile.weight + i);
      const Vec<A> numerator =
          by_left * lane.value[0] + by_right * load(sums_ + 2 * p * L) + weight * load(tile.first + i);
      const Vec<A> denominator = by_left * lane.value[1] + by_right * load(sums_ + (2 * p + 1) * L) + weight;
      store(out_ + i, numerator / denominator);
      if (keep_logs) store(logs_ + i, reference + vlog(denominator));
    });
    left.store_to(*keys_.left, c);
  }

  void write_tile(int64_t first, int64_t tokens) {
    store_block(out_, tokens, tiling_.count(), at<In>(p_.out, batch_, first, 0) + tiling_.channel(), p_.out.token);
    if (!p_.log_normaliser) return;
    const int64_t place = (batch_ * p_.N + first) * p_.C + tiling_.channel();
    store_block(logs_, tokens, tiling_.count(), static_cast<A*>(p_.log_normaliser) + place, p_.C);
    if (p_.exact_out) store_block(out_, tokens, tiling_.count(), static_cast<A*>(p_.exact_out) + place, p_.C);
  }

  const WkvParams& p_;
  Tiling<A> tiling_;
  int64_t tokens_, batch_ = 0, begin_ = 0;
  Arena arena_;
  ScanSide<A, 2> keys_;
  A *values_, *sums_, *out_, *logs_;
};

template <class In>
using ForwardState = ScanState<Acc<In>, 2>;

static int64_t block(const Task& task) {
  return with_input(task, [&]<class In>(In) { return kBlock<Acc<In>>; });
}

static size_t scratch(const WkvParams& p, const Task& task, int64_t tokens) {
  return with_input(
      task, [&]<class In>(In) { return WkvForward<In>(p, task, 0, tokens, most_tiles<Acc<In>>(p, tokens)).scratch(); });
}

static size_t states(const Task& task) {
  return with_input(task, [&]<class In>(In) { return 2 * sizeof(ForwardState<In>); });
}

static void gather(const WkvParams& p, const Task& task, Stretch s, void* states) {
  with_input(task, [&]<class In>(In) { WkvForward<In>(p, task, s).gather(static_cast<ForwardState<In>*>(states)); });
}

static void connect_all(const WkvParams& p, const Task& task, Stretch s, int64_t count, void* states) {
  with_input(task, [&]<class In>(In) {
    WkvForward<In>(p, task, s).connect_all(count, static_cast<ForwardState<In>*>(states));
  });
}

static void run(const WkvParams& p, const Task& task, Stretch s, const void* states) {
  with_input(task, [&]<class In>(In) { WkvForward<In>(p, task, s).run(static_cast<const ForwardState<In>*>(states)); });
}

extern const WkvKernels wkv_forward;
const WkvKernels wkv_forward{block, scratch, states, gather, connect_all, run};

}  // namespace sola::SOLA_ISA
