// bidirectional WKV, backward: a stretch of tokens of one block of channels
//
// With z = −log(normaliser), the weight of token i in the average at t is e^(k_i + z_t − (|t−i|−1) w), or
// e^(k_t + z_t + u) for itself. Sums over t therefore run as a scan of their own, with z for log-weights:
//
//   P_i = Σ_t e^(z_t …) dy_t     H_i = Σ_t e^(z_t …) h_t     with h = −dy · y
//   dv_i = e^(k_i) P_i           dk_i = v_i dv_i + e^(k_i) H_i
//   du = Σ_i e^(k_i + z_i + u) (v_i dy_i + h_i)
//
// dw weighs every pair by the number of tokens between the two. Each of these tokens sees one of the pair on its left
// and the other on its right, so with N and D the sums over the keys, P and H over one side alone:
//
//   dw = −e^(−w) Σ_c [N_left P_right + D_left H_right + N_right P_left + D_right H_left] at token c
//
// docs/math.md has the derivation.

#include "cpu/linear.h"
#include "cpu/wkv.h"

namespace sola::SOLA_ISA {

template <class A>
struct BackwardStates {
  ScanState<A> keys[2];  // entering from the left, from the right
  ScanState<A> grads[2];
};

template <class In>
class WkvBackward {
  using A = Acc<In>;
  static constexpr int64_t W = kBlock<A>;
  static constexpr int L = kLanes<A>;
  static constexpr bool kRough = sizeof(In) == 2;

 public:
  WkvBackward(const WkvParams& p, const Task& task, Stretch s)
      : p_(p),
        stretch_(s),
        tiling_(p, s.channel, s.end - s.begin),
        arena_(task.scratch),
        memory_(arena_, tiling_.tiles()) {}

  static size_t scratch(const WkvParams& p, int64_t tokens) {
    Arena arena(nullptr);
    Memory(arena, most_tiles<A>(p, tokens));
    return arena.used();
  }

  void gather(BackwardStates<A>* states) {
    for (int side = 0; side < 2; ++side) {
      states->keys[side].clear();
      states->grads[side].clear();
    }
    const int64_t tiles = tiling_.tiles();
    // nothing lies behind the last stretch, nor before the first
    const bool last = stretch_.end == p_.N, first = stretch_.begin == 0;
    for (int64_t t = 0; !last && t < tiles; ++t) {
      advance<Direction::left_to_right>(t, states->keys[0], states->grads[0]);
    }
    for (int64_t t = tiles - 1; !first && t >= 0; --t) {
      advance<Direction::right_to_left>(t, states->keys[1], states->grads[1]);
    }
  }

  void connect_all(int64_t count, BackwardStates<A>* states) {
    const auto length = [&](int64_t s) { return s == count - 1 ? p_.N - s * tiling_.tokens() : tiling_.tokens(); };
    for (int side = 0; side < 2; ++side) {
      memory_.keys.left->clear();
      memory_.grads.left->clear();
      for (int64_t step = 0; step < count; ++step) {
        const int64_t s = side == 0 ? step : count - 1 - step;
        connect(states[s].keys[side], *memory_.keys.left, tiling_.channels(), tiling_.count(), length(s));
        connect(states[s].grads[side], *memory_.grads.left, tiling_.channels(), tiling_.count(), length(s));
      }
    }
  }

  void run(const BackwardStates<A>* states) {
    const int64_t tiles = tiling_.tiles();
    memory_.keys.enter(states ? states->keys : nullptr, states ? states->keys + 1 : nullptr, tiles);
    memory_.grads.enter(states ? states->grads : nullptr, states ? states->grads + 1 : nullptr, tiles);
    for (int64_t t = tiles - 1; t > 0; --t) {
      memory_.keys.rights[t - 1] = memory_.keys.rights[t];
      memory_.grads.rights[t - 1] = memory_.grads.rights[t];
      advance<Direction::right_to_left>(t, memory_.keys.rights[t - 1], memory_.grads.rights[t - 1]);
    }
    find_maxima(0);
    for (A* sum : {memory_.grad_decay, memory_.grad_decay_low, memory_.grad_bonus, memory_.grad_bonus_low})
      fill(sum, W, A(0));
    for (int64_t t = 0; t < tiles; ++t) {
      tiling_.over_vectors([&](int64_t c, auto part) SOLA_LAMBDA { emit(Rows<part()>(*this, t, c), t, c); });
    }
    add_row(memory_.grad_decay_low, memory_.grad_decay, W, A(1));
    add_row(memory_.grad_bonus_low, memory_.grad_bonus, W, A(1));
    const int64_t row = (stretch_.batch * p_.stretches + stretch_.index) * p_.C + tiling_.channel();
    convert_row(memory_.grad_decay, tiling_.count(), static_cast<A*>(p_.grad_decay) + row, tiling_.count());
    convert_row(memory_.grad_bonus, tiling_.count(), static_cast<A*>(p_.grad_bonus) + row, tiling_.count());
  }

 private:
  // weights of the tokens of a tile, and the sums over what lies on their right, for one vector of channels
  struct Tile {
    A *weight, *first, *second;

    SOLA_INLINE void keep(int64_t p, const Fresh<A>& sums) const {
      store(first + p * L, sums.first);
      store(second + p * L, sums.second);
    }
  };

  template <class T, bool kPart>
  Column<T, kPart> column(const View& view, int64_t t, int64_t c) const {
    T* row = at<T>(view, stretch_.batch, stretch_.begin + tiling_.first(t), 0);
    return {row + tiling_.channel() + c, view.token, tiling_.count() - c};
  }

  View plane(void* data) const { return {data, p_.N * p_.C, p_.C, 0}; }

  // what a tile reads, one vector of channels; the output before it was rounded
  template <bool kPart>
  struct Rows {
    Column<const In, kPart> k, v, dy;
    Column<const A, kPart> log_normaliser, y;

    Rows(const WkvBackward& b, int64_t t, int64_t c)
        : k(b.column<const In, kPart>(b.p_.k, t, c)),
          v(b.column<const In, kPart>(b.p_.v, t, c)),
          dy(b.column<const In, kPart>(b.p_.grad_out, t, c)),
          log_normaliser(b.column<const A, kPart>(b.plane(b.p_.log_normaliser), t, c)),
          y(b.column<const A, kPart>(b.p_.exact_out ? b.plane(b.p_.exact_out) : b.p_.out, t, c)) {}
  };

  template <bool kPart>
  SOLA_INLINE void maxima(const Rows<kPart>& rows, int64_t t, int64_t c, Direction direction) {
    const int64_t tokens = tiling_.length(t), next = ahead(direction);
    store(memory_.keys.maxima + t * W + c, largest<A>(tokens, [&](int64_t p) SOLA_LAMBDA {
            rows.k.prefetch(p + next);
            return rows.k[p];
          }));
    store(memory_.grads.maxima + t * W + c, largest<A>(tokens, [&](int64_t p) SOLA_LAMBDA {
            rows.log_normaliser.prefetch(p + next);
            return -rows.log_normaliser[p];
          }));
  }

  void find_maxima(int64_t t) {
    tiling_.over_vectors([&](int64_t c, auto part)
                             SOLA_LAMBDA { maxima(Rows<part()>(*this, t, c), t, c, Direction::left_to_right); });
  }

  // the states move across a tile; leaves the tile's maxima
  template <Direction kDirection>
  void advance(int64_t t, ScanState<A>& keys, ScanState<A>& grads) {
    tiling_.over_vectors([&](int64_t c, auto part)
                             SOLA_LAMBDA { advance_vector<kDirection>(Rows<part()>(*this, t, c), t, c, keys, grads); });
  }

  template <Direction kDirection, bool kPart>
  void advance_vector(const Rows<kPart>& rows, int64_t t, int64_t c, ScanState<A>& keys, ScanState<A>& grads) {
    const auto& channels = tiling_.channels();
    const int64_t tokens = tiling_.length(t), next = ahead(kDirection);
    maxima(rows, t, c, kDirection);
    const auto nothing = [](int64_t, const Fresh<A>&) SOLA_LAMBDA {};
    auto lane = Lane<A>::load_from(keys, c);
    scan<kDirection, Purpose::move>(
        channels, c, tokens, load(memory_.keys.maxima + t * W + c), lane,
        [&](int64_t p, const Reference<A>& reference) SOLA_LAMBDA {
          const Vec<A> weight = vexp_negative<kRough>(rows.k[p] - reference.m);
          rows.v.prefetch(p + next);
          return Fresh<A>{weight * rows.v[p], weight};
        },
        nothing);
    lane.store_to(keys, c);
    lane = Lane<A>::load_from(grads, c);
    scan<kDirection, Purpose::move>(
        channels, c, tokens, load(memory_.grads.maxima + t * W + c), lane,
        [&](int64_t p, const Reference<A>& reference) SOLA_LAMBDA {
          const Vec<A> weight = vexp_negative<kRough>(-rows.log_normaliser[p] - reference.m);
          rows.dy.prefetch(p + next);
          rows.y.prefetch(p + next);
          const Vec<A> first = weight * rows.dy[p];
          return Fresh<A>{first, -first * rows.y[p]};
        },
        nothing);
    lane.store_to(grads, c);
  }

  // the weights of a tile's tokens, and at every token the sums over what lies on its right
  template <bool kPart>
  SOLA_INLINE void look_right(const Rows<kPart>& rows, int64_t t, int64_t c, Lane<A>& keys, Lane<A>& grads) {
    const auto& channels = tiling_.channels();
    const int64_t tokens = tiling_.length(t);
    const Vec<A> key_maximum = load(memory_.keys.maxima + t * W + c),
                 grad_maximum = load(memory_.grads.maxima + t * W + c);
    scan<Direction::right_to_left, Purpose::see>(
        channels, c, tokens, key_maximum, keys,
        [&](int64_t p, const Reference<A>& r) SOLA_LAMBDA {
          const Vec<A> weight = vexp_negative<kRough>(rows.k[p] - key_maximum);
          rows.k.prefetch(p + kTileTokens);
          store(memory_.key_tile.weight + p * L, weight);
          return Fresh<A>{weight * r.share * rows.v[p], weight * r.share};
        },
        [&](int64_t p, const Fresh<A>& sums) SOLA_LAMBDA { memory_.key_tile.keep(p, sums); });
    scan<Direction::right_to_left, Purpose::see>(
        channels, c, tokens, grad_maximum, grads,
        [&](int64_t p, const Reference<A>& r) SOLA_LAMBDA {
          const Vec<A> weight = vexp_negative<kRough>(-rows.log_normaliser[p] - grad_maximum);
          rows.log_normaliser.prefetch(p + kTileTokens);
          store(memory_.grad_tile.weight + p * L, weight);
          const Vec<A> first = weight * r.share * rows.dy[p];
          return Fresh<A>{first, -first * rows.y[p]};
        },
        [&](int64_t p, const Fresh<A>& sums) SOLA_LAMBDA { memory_.grad_tile.keep(p, sums); });
  }

  template <bool kPart>
  void emit(const Rows<kPart>& rows, int64_t t, int64_t c) {
    const auto& channels = tiling_.channels();
    const int64_t tokens = tiling_.length(t);
    const Vec<A> key_maximum = load(memory_.keys.maxima + t * W + c),
                 grad_maximum = load(memory_.grads.maxima + t * W + c);
    const Vec<A> decay = load(channels.decay + c);
    auto keys = Lane<A>::load_from(memory_.keys.rights[t], c), grads = Lane<A>::load_from(memory_.grads.rights[t], c);
    const Vec<A> right_keys = channels.reference(keys, key_maximum);
    const Vec<A> right_grads = channels.reference(grads, grad_maximum);
    look_right(rows, t, c, keys, grads);
    keys = Lane<A>::load_from(*memory_.keys.left, c);
    grads = Lane<A>::load_from(*memory_.grads.left, c);
    const Vec<A> left_keys = channels.reference(keys, key_maximum);
    const Vec<A> left_grads = channels.reference(grads, grad_maximum);

    Vec<A> apart{};
    scan<Direction::left_to_right, Purpose::see_and_move>(
        channels, c, tokens, key_maximum, keys,
        [&](int64_t p, const Reference<A>& r) SOLA_LAMBDA {
          const Vec<A> weight = load(memory_.key_tile.weight + p * L) * r.share;
          return Fresh<A>{weight * rows.v[p], weight};
        },
        [&](int64_t p, const Fresh<A>& sums) SOLA_LAMBDA {
          apart +=
              sums.first * load(memory_.grad_tile.first + p * L) + sums.second * load(memory_.grad_tile.second + p * L);
        });
    add_up(memory_.grad_decay + c, memory_.grad_decay_low + c, -vexp(left_keys + right_grads - decay) * apart);
    keys.store_to(*memory_.keys.left, c);

    const auto grad_k = column<In, kPart>(p_.grad_k, t, c), grad_v = column<In, kPart>(p_.grad_v, t, c);
    const Vec<A> by_left = vexp(key_maximum + left_grads), by_right = vexp(key_maximum + right_grads);
    const Vec<A> by_own = vexp(key_maximum + grad_maximum + load(channels.bonus + c));
    Vec<A> grad_bonus{};
    apart = Vec<A>{};
    scan<Direction::left_to_right, Purpose::see_and_move>(
        channels, c, tokens, grad_maximum, grads,
        [&](int64_t p, const Reference<A>& r) SOLA_LAMBDA {
          const Vec<A> first = load(memory_.grad_tile.weight + p * L) * r.share * rows.dy[p];
          return Fresh<A>{first, -first * rows.y[p]};
        },
        [&](int64_t p, const Fresh<A>& sums) SOLA_LAMBDA {
          const Vec<A> v = rows.v[p], dy = rows.dy[p], h = -dy * rows.y[p];
          const Vec<A> weight = load(memory_.key_tile.weight + p * L),
                       own = by_own * load(memory_.grad_tile.weight + p * L);
          const Vec<A> P = by_left * sums.first + (by_right * load(memory_.grad_tile.first + p * L) + own * dy);
          const Vec<A> H = by_left * sums.second + (by_right * load(memory_.grad_tile.second + p * L) + own * h);
          const Vec<A> dv = weight * P;
          grad_v.put(p, dv);
          grad_k.put(p, v * dv + weight * H);
          grad_bonus += weight * own * (v * dy + h);
          apart +=
              sums.first * load(memory_.key_tile.first + p * L) + sums.second * load(memory_.key_tile.second + p * L);
          for (const auto& next : {rows.v, rows.dy}) next.prefetch(p + kTileTokens);
          rows.y.prefetch(p + kTileTokens);
          for (const auto& next : {grad_k, grad_v}) next.prefetch_to_write(p + kTileTokens);
        });
    add_up(memory_.grad_decay + c, memory_.grad_decay_low + c, -vexp(right_keys + left_grads - decay) * apart);
    add_up(memory_.grad_bonus + c, memory_.grad_bonus_low + c, grad_bonus);
    grads.store_to(*memory_.grads.left, c);
  }

  static SOLA_INLINE void add_up(A* sums, A* lows, Vec<A> x) {
    Vec<A> sum = load(sums), low = load(lows);
    add_exactly<A>(sum, low, x);
    store(sums, sum);
    store(lows, low);
  }

  struct Memory {
    ScanSide<A> keys, grads;
    Tile key_tile, grad_tile;
    A *grad_decay, *grad_decay_low, *grad_bonus, *grad_bonus_low;

    Memory(Arena& arena, int64_t tiles) : keys(arena, tiles), grads(arena, tiles) {
      for (Tile* tile : {&key_tile, &grad_tile}) {
        for (A** part : {&tile->weight, &tile->first, &tile->second}) *part = arena.take<A>(kTileTokens * L);
      }
      for (A** sum : {&grad_decay, &grad_decay_low, &grad_bonus, &grad_bonus_low}) *sum = arena.take<A>(W);
    }
  };

  const WkvParams& p_;
  Stretch stretch_;
  Tiling<A> tiling_;
  Arena arena_;
  Memory memory_;
};

static int64_t block(const WkvParams& p, const Task& task) {
  return with_input(task, [&]<class In>(In) { return block_width<Acc<In>>(p); });
}

static size_t scratch(const WkvParams& p, const Task& task, int64_t tokens) {
  return with_input(task, [&]<class In>(In) { return WkvBackward<In>::scratch(p, tokens); });
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
