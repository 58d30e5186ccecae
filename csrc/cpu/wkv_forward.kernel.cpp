// bidirectional WKV, forward: a stretch of tokens of one block of channels
//
//   out_t = (left_t + right_t + e^(u + k_t) v_t) / (the same with v = 1)
//
// A first pass from the right leaves the states that enter every tile; a second one from the left writes the outputs.

#include "cpu/wkv.h"

namespace sola::SOLA_ISA {

template <class In>
class WkvForward {
  using A = Acc<In>;
  using State = ScanState<A>;
  static constexpr int64_t W = kBlock<A>;
  static constexpr int L = kLanes<A>;
  static constexpr bool kRough = sizeof(In) == 2;

 public:
  WkvForward(const WkvParams& p, const Task& task, Stretch s)
      : p_(p),
        batch_(s.batch),
        begin_(s.begin),
        tiling_(p, s.channel, s.end - s.begin),
        arena_(task.scratch),
        memory_(arena_, tiling_.tiles()) {}

  static size_t scratch(const WkvParams& p, int64_t tokens) {
    Arena arena(nullptr);
    Memory(arena, most_tiles<A>(p, tokens));
    return arena.used();
  }

  // sums of the stretch by itself, from the left and from the right
  void gather(State* states) {
    states[0].clear();
    states[1].clear();
    const int64_t tiles = tiling_.tiles();
    // nothing lies behind the last stretch, nor before the first
    const bool last = begin_ + tiling_.tokens() == p_.N, first = begin_ == 0;
    for (int64_t t = 0; !last && t < tiles; ++t) advance<Direction::left_to_right>(t, states[0]);
    for (int64_t t = tiles - 1; !first && t >= 0; --t) advance<Direction::right_to_left>(t, states[1]);
  }

  // `count` stretches of this one's length, the last one shorter
  void connect_all(int64_t count, State* states) {
    const auto length = [&](int64_t s) { return s == count - 1 ? p_.N - s * tiling_.tokens() : tiling_.tokens(); };
    const auto join = [&](int64_t s, int side) {
      connect(states[2 * s + side], *memory_.keys.left, tiling_.channels(), tiling_.count(), length(s));
    };
    memory_.keys.left->clear();
    for (int64_t s = 0; s < count; ++s) join(s, 0);
    memory_.keys.left->clear();
    for (int64_t s = count - 1; s >= 0; --s) join(s, 1);
  }

  void run(const State* states) {
    const int64_t tiles = tiling_.tiles();
    memory_.keys.enter(states, states ? states + 1 : nullptr, tiles);
    for (int64_t t = tiles - 1; t >= 0; --t) {
      if (t == 0) {
        find_maxima(t);
      } else {
        memory_.keys.rights[t - 1] = memory_.keys.rights[t];
        advance<Direction::right_to_left>(t, memory_.keys.rights[t - 1]);
      }
    }
    for (int64_t t = 0; t < tiles; ++t) {
      tiling_.over_vectors([&](int64_t c, auto part) SOLA_LAMBDA {
        if (p_.log_normaliser) {
          emit<part(), true>(t, c);
        } else {
          emit<part(), false>(t, c);
        }
      });
    }
  }

 private:
  template <class T, bool kPart>
  Column<T, kPart> column(const View& view, int64_t t, int64_t c) const {
    T* row = at<T>(view, batch_, begin_ + tiling_.first(t), 0);
    return {row + tiling_.channel() + c, view.token, tiling_.count() - c};
  }
  template <bool kPart>
  Column<A, kPart> saved(void* plane, int64_t t, int64_t c) const {
    return column<A, kPart>({plane, p_.N * p_.C, p_.C, 0}, t, c);
  }

  template <bool kPart>
  SOLA_INLINE Vec<A> maximum(int64_t t, int64_t c, Direction direction) {
    const auto k = column<const In, kPart>(p_.k, t, c);
    const Vec<A> M = largest<A>(tiling_.length(t), [&](int64_t p) SOLA_LAMBDA {
      k.prefetch(p + ahead(direction));
      return k[p];
    });
    store(memory_.keys.maxima + t * W + c, M);
    return M;
  }

  void find_maxima(int64_t t) {
    tiling_.over_vectors([&](int64_t c, auto part) SOLA_LAMBDA { maximum<part()>(t, c, Direction::left_to_right); });
  }

  // a state moves across a tile; leaves the tile's maxima
  template <Direction kDirection>
  void advance(int64_t t, State& state) {
    tiling_.over_vectors([&](int64_t c, auto part) SOLA_LAMBDA {
      const Vec<A> M = maximum<part()>(t, c, kDirection);
      const auto k = column<const In, part()>(p_.k, t, c), v = column<const In, part()>(p_.v, t, c);
      auto lane = Lane<A>::load_from(state, c);
      scan<kDirection, Purpose::move>(
          tiling_.channels(), c, tiling_.length(t), M, lane,
          [&](int64_t p, const Reference<A>& reference) SOLA_LAMBDA {
            const Vec<A> weight = vexp_negative<kRough>(k[p] - reference.m);
            v.prefetch(p + ahead(kDirection));
            return Fresh<A>{weight * v[p], weight};
          },
          [](int64_t, const Fresh<A>&) SOLA_LAMBDA {});
      lane.store_to(state, c);
    });
  }

  template <bool kPart, bool kSave>
  void emit(int64_t t, int64_t c) {
    constexpr auto kForth = Direction::left_to_right, kBack = Direction::right_to_left;
    const auto& channels = tiling_.channels();
    const int64_t tokens = tiling_.length(t);
    const auto k = column<const In, kPart>(p_.k, t, c), v = column<const In, kPart>(p_.v, t, c);
    const auto out = column<In, kPart>(p_.out, t, c);
    const Vec<A> M = load(memory_.keys.maxima + t * W + c), own = M + load(channels.bonus + c);
    auto left = Lane<A>::load_from(*memory_.keys.left, c), right = Lane<A>::load_from(memory_.keys.rights[t], c);
    // one reference for the three parts, the same all over the tile
    const Vec<A> left_reference = channels.reference(left, M);
    const Vec<A> reference = vmax(vmax(left_reference, channels.reference(right, M)), own);
    const Vec<A> by_left = vexp_negative<false>(left_reference - reference);
    const Vec<A> by_own = vexp_negative<false>(own - reference);
    right.refer_to(reference);
    scan<kBack, Purpose::see>(
        channels, c, tokens, M, right,
        [&](int64_t p, const Reference<A>& r) SOLA_LAMBDA {
          const Vec<A> weight = vexp_negative<kRough>(k[p] - M);
          k.prefetch(p + kTileTokens);
          store(memory_.weights + p * L, weight);
          return Fresh<A>{weight * r.share * v[p], weight * r.share};
        },
        [&](int64_t p, const Fresh<A>& sums) SOLA_LAMBDA {
          store(memory_.numerators + p * L, sums.first);
          store(memory_.denominators + p * L, sums.second);
        });
    const auto logs = kSave ? saved<kPart>(p_.log_normaliser, t, c) : Column<A, kPart>{};
    const auto exact = kSave && p_.exact_out ? saved<kPart>(p_.exact_out, t, c) : Column<A, kPart>{};
    scan<kForth, Purpose::see_and_move>(
        channels, c, tokens, M, left,
        [&](int64_t p, const Reference<A>& r) SOLA_LAMBDA {
          const Vec<A> weight = load(memory_.weights + p * L) * r.share;
          return Fresh<A>{weight * v[p], weight};
        },
        [&](int64_t p, const Fresh<A>& sums) SOLA_LAMBDA {
          const Vec<A> weight = by_own * load(memory_.weights + p * L);
          v.prefetch(p + kTileTokens);
          out.prefetch_to_write(p + kTileTokens);
          const Vec<A> numerator = by_left * sums.first + (load(memory_.numerators + p * L) + weight * v[p]);
          const Vec<A> denominator = by_left * sums.second + (load(memory_.denominators + p * L) + weight);
          const Vec<A> result = numerator / denominator;
          out.put(p, result);
          if constexpr (kSave) {
            logs.prefetch_to_write(p + kTileTokens);
            logs.put(p, reference + vlog(denominator));
            if (exact.data) exact.put(p, result);
          }
        });
    left.store_to(*memory_.keys.left, c);
  }

  struct Memory {
    ScanSide<A> keys;
    // of one tile and one vector of channels
    A *weights, *numerators, *denominators;

    Memory(Arena& arena, int64_t tiles) : keys(arena, tiles) {
      for (A** tile : {&weights, &numerators, &denominators}) *tile = arena.take<A>(kTileTokens * L);
    }
  };

  const WkvParams& p_;
  int64_t batch_, begin_;
  Tiling<A> tiling_;
  Arena arena_;
  Memory memory_;
};

static int64_t block(const WkvParams& p, const Task& task) {
  return with_input(task, [&]<class In>(In) { return block_width<Acc<In>>(p); });
}

static size_t scratch(const WkvParams& p, const Task& task, int64_t tokens) {
  return with_input(task, [&]<class In>(In) { return WkvForward<In>::scratch(p, tokens); });
}

static size_t states(const Task& task) {
  return with_input(task, [&]<class In>(In) { return 2 * sizeof(ScanState<Acc<In>>); });
}

static void gather(const WkvParams& p, const Task& task, Stretch s, void* states) {
  with_input(task, [&]<class In>(In) { WkvForward<In>(p, task, s).gather(static_cast<ScanState<Acc<In>>*>(states)); });
}

static void connect_all(const WkvParams& p, const Task& task, Stretch s, int64_t count, void* states) {
  with_input(task, [&]<class In>(In) {
    WkvForward<In>(p, task, s).connect_all(count, static_cast<ScanState<Acc<In>>*>(states));
  });
}

static void run(const WkvParams& p, const Task& task, Stretch s, const void* states) {
  with_input(task,
             [&]<class In>(In) { WkvForward<In>(p, task, s).run(static_cast<const ScanState<Acc<In>>*>(states)); });
}

extern const WkvKernels wkv_forward;
const WkvKernels wkv_forward{block, scratch, states, gather, connect_all, run};

}  // namespace sola::SOLA_ISA
