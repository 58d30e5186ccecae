// bidirectional WKV: the decaying scan that forward and backward share
//
// A scan sums values under weights e^(x_i − decay·distance), x_i a log-weight per token and channel. Tokens are taken
// in tiles, and a state (values, m), standing for values · e^m, is carried from tile to tile. With M the largest x of a
// tile and r = max(m, M), the sums inside a tile need one exponential e^(x_i − r) per token, and multiplications by
// λ = e^−decay. From tile to tile goes the state, times λ^T, plus what the tile sums up to by itself: added token by
// token, a large state would round every one of them, thousands of times over.
//
// Nothing that counts is lost as long as |decay|·T + |bonus| ≤ 32 for a tile of T tokens: a token whose weight
// underflows (e^−86) is outweighed at every place that it reaches by the token that holds the maximum, by e^54 at
// least; a tile that underflows beside the state that enters it is so by e^16: m overstates the state by what a tile
// forgets and by what keep_in_range leaves (e^32, e^6), and this tile forgets as much once more. Where decay or bonus
// are too large for that even with few tokens, tiles shrink to one token and decay moves into m.
//
// Work goes vector of channels by vector of channels, straight from the caller's rows to the caller's rows.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cpu/tiles.h"

namespace sola::SOLA_ISA {

// channels of one task, at most: four vectors, so that rows of tokens are read in pieces of several cache lines
template <class A>
constexpr int64_t kBlock = 4 * kLanes<A>;
constexpr int64_t kTileTokens = 64;
// tokens after which λ is corrected for its rounding
constexpr int64_t kGroup = 8;
// the log-weight of an empty state: finite, so that differences never turn into Inf − Inf
constexpr double kEmpty = -1e30;

enum class Direction { left_to_right, right_to_left };

// what a token, or a tile, adds to the two sums
template <class A>
struct Fresh {
  Vec<A> first{}, second{};
};

// sum + low += x, with what `sum` can't hold kept in `low`
template <class A>
SOLA_INLINE void add_exactly(Vec<A>& sum, Vec<A>& low, Vec<A> x) {
  const Vec<A> total = sum + x, part = total - sum;
  const Vec<A> rest = low + ((sum - (total - part)) + (x - part));
  sum = total + rest;
  low = rest - (sum - total);
}

// the sums of two values over the tokens on one side, for one block of channels, each in two numbers
template <class A>
struct ScanState {
  A first[kBlock<A>], first_low[kBlock<A>], second[kBlock<A>], second_low[kBlock<A>];
  // a positive number of the size of the summed weights, to keep the values in range
  A gauge[kBlock<A>];
  A m[kBlock<A>];

  void clear() {
    std::memset(this, 0, sizeof(*this));
    fill(m, kBlock<A>, A(kEmpty));
  }
};

// one vector of a state
template <class A>
struct Lane {
  Vec<A> first, first_low, second, second_low, gauge, m;

  static SOLA_INLINE Lane load_from(const ScanState<A>& state, int64_t c) {
    return {load(state.first + c),      load(state.first_low + c), load(state.second + c),
            load(state.second_low + c), load(state.gauge + c),     load(state.m + c)};
  }

  SOLA_INLINE void store_to(ScanState<A>& state, int64_t c) const {
    store(state.first + c, first);
    store(state.first_low + c, first_low);
    store(state.second + c, second);
    store(state.second_low + c, second_low);
    store(state.gauge + c, gauge);
    store(state.m + c, m);
  }

  SOLA_INLINE void rescale(Vec<A> factor) {
    for (Vec<A>* value : {&first, &first_low, &second, &second_low, &gauge}) *value *= factor;
  }

  // values · e^m is kept, with m = reference; factors that underflow stand for sums that no longer count
  SOLA_INLINE void refer_to(Vec<A> reference) {
    rescale(vexp_negative<false>(m - reference));
    m = reference;
  }

  // times factor · (1 + rest), where the factor is a rounded number and the rest what it lacks
  SOLA_INLINE void fade(Vec<A> factor, Vec<A> rest) {
    const auto one = [&](Vec<A>& value, Vec<A>& low) SOLA_LAMBDA {
      const Vec<A> product = value * factor;
      // fused, the first difference is the rounding error of the product
      low = (value * factor - product) + (product * rest + low * factor);
      value = product;
    };
    one(first, first_low);
    one(second, second_low);
    gauge *= factor;
  }

  SOLA_INLINE void add(const Fresh<A>& more, Vec<A> weight) {
    add_exactly<A>(first, first_low, more.first);
    add_exactly<A>(second, second_low, more.second);
    gauge += weight;
  }

  // keeps the values near 1 by moving their size into m; in range nothing happens, so nothing is rounded
  SOLA_INLINE void keep_in_range() {
    const Vec<A> one = splat<A>(1);
    const auto out_of_range = (gauge > A(0x1p30)) | ((gauge < A(0x1p-8)) & (gauge > A(0)));
    const Vec<A> size = out_of_range ? gauge : one;
    rescale(one / size);
    m += vlog(size);
  }
};

// e^(−decay · tokens) for all channels of a task: rounded, and what the rounded number lacks, relative to it. Thousands
// of tokens would raise that to a visible power.
template <class A>
struct Fading {
  A factor[kBlock<A>], rest[kBlock<A>];

  void set(const double* exact) {
    for (int64_t c = 0; c < kBlock<A>; ++c) {
      factor[c] = A(exact[c]);
      // nothing is known of what 0 and Inf lack
      const double lacking = exact[c] / double(factor[c]) - 1;
      rest[c] = A(lacking > -1e-3 && lacking < 1e-3 ? lacking : 0.0);
    }
  }
};

// x^n
template <class A>
void raise(const double* x, int64_t n, double* result) {
  double square[kBlock<A>];
  std::memcpy(square, x, sizeof(square));
  fill(result, kBlock<A>, 1.0);
  for (; n > 0; n /= 2) {
    for (int64_t c = 0; n % 2 && c < kBlock<A>; ++c) result[c] *= square[c];
    for (int64_t c = 0; c < kBlock<A>; ++c) square[c] *= square[c];
  }
}

// the longest tile in which nothing that counts is lost
template <class A>
int64_t tile_tokens(const A* decay, const A* bonus, int64_t count) {
  double longest = kTileTokens;
  for (int64_t c = 0; c < count; ++c) {
    const double room = 32.0 - ::fabs(double(bonus[c])), rate = ::fabs(double(decay[c]));
    // also false for NaN
    const bool fits = room >= rate * longest;
    if (!fits) longest = room >= rate ? room / rate : 1.0;
  }
  return longest >= 2 ? int64_t(longest) : 1;
}

// what the tiles of one task need to know about its channels
template <class A>
struct Channels {
  A decay[kBlock<A>], bonus[kBlock<A>];
  int64_t tile_tokens, last_tile_tokens;
  Fading<A> token, tile, last_tile;
  // e^(−decay · i · kGroup)
  A groups[kTileTokens / kGroup + 1][kBlock<A>];

  void load_from(const A* decays, const A* bonuses, int64_t count, int64_t tokens) {
    convert_row(decays, count, decay, kBlock<A>);
    convert_row(bonuses, count, bonus, kBlock<A>);
    tile_tokens = SOLA_ISA::tile_tokens(decay, bonus, count);
    last_tile_tokens = (tokens - 1) % tile_tokens + 1;
    if (in_steps()) return;
    double exact[kBlock<A>], power[kBlock<A>];
    for (int64_t c = 0; c < kBlock<A>; ++c) exact[c] = c < count ? ::exp(-double(decay[c])) : 1.0;
    token.set(exact);
    raise<A>(exact, tile_tokens, power);
    tile.set(power);
    raise<A>(exact, last_tile_tokens, power);
    last_tile.set(power);
    raise<A>(exact, kGroup, exact);
    fill(power, kBlock<A>, 1.0);
    for (int64_t i = 0; i * kGroup <= tile_tokens; ++i) {
      for (int64_t c = 0; c < kBlock<A>; ++c) groups[i][c] = A(power[c]);
      for (int64_t c = 0; c < kBlock<A>; ++c) power[c] *= exact[c];
    }
  }

  // decay that every token moves into m instead of into a factor
  bool in_steps() const { return tile_tokens == 1; }

  // of the sums that scan shows its visitor
  SOLA_INLINE Vec<A> reference(const Lane<A>& entering, Vec<A> M) const {
    return in_steps() ? entering.m : vmax(entering.m, M);
  }

  // a state fades over a tile of so many tokens, unless that has gone into m
  SOLA_INLINE void fade(Lane<A>& lane, int64_t c, int64_t tokens) const {
    const Fading<A>& fading = tokens == tile_tokens ? tile : last_tile;
    if (!in_steps()) lane.fade(load(fading.factor + c), load(fading.rest + c));
  }
};

// One vector of channels of a tensor, token by token from some place on; the last vector of a row may be a part of one
template <class T, bool kPart>
struct Column {
  using V = Vec<Acc<std::remove_const_t<T>>>;

  T* data;
  int64_t stride, channels;

  SOLA_INLINE V operator[](int64_t token) const {
    if constexpr (kPart) return load_part(data + token * stride, channels);
    return load(data + token * stride);
  }
  SOLA_INLINE void put(int64_t token, V x) const {
    if constexpr (kPart) {
      store_part(data + token * stride, x, channels);
    } else {
      store(data + token * stride, x);
    }
  }
  // rows lie too far apart for the hardware to see a stream
  SOLA_INLINE void prefetch(int64_t token) const { __builtin_prefetch(data + token * stride, 0, 2); }
  SOLA_INLINE void prefetch_to_write(int64_t token) const { __builtin_prefetch(data + token * stride, 1, 2); }
};

SOLA_INLINE int64_t token_at(Direction direction, int64_t step, int64_t tokens) {
  return direction == Direction::left_to_right ? step : tokens - 1 - step;
}
// where the tile lies that comes next
SOLA_INLINE int64_t ahead(Direction direction) {
  return direction == Direction::left_to_right ? kTileTokens : -kTileTokens;
}

// the largest of `tokens` log-weights x(p)
template <class A, class X>
SOLA_INLINE Vec<A> largest(int64_t tokens, const X& x) {
  Vec<A> best = splat<A>(A(kEmpty));
  for (int64_t p = 0; p < tokens; ++p) best = vmax(x(p), best);
  return best;
}

// how weights turn from a tile's reference into a state's
template <class A>
struct Reference {
  Vec<A> m, share;  // share = e^(M − m)
};

// what a scan is for: to see the sums at every token, to move the state across the tile, or both
enum class Purpose { see, move, see_and_move };

// Takes one vector of a state across a tile with the largest log-weight M. A token adds fresh(p, reference) to the sums
// of the tokens behind it; see(p, sums) is called with the sums over the tokens before it, in the reference of
// channels.reference(). What is seen starts anew with every group, so that it is rounded a few times only.
template <Direction kDirection, Purpose kPurpose, class A, class AtToken, class See>
SOLA_INLINE void scan(const Channels<A>& channels, int64_t c, int64_t tokens, Vec<A> M, Lane<A>& lane,
                      const AtToken& fresh, const See& see) {
  constexpr bool kSees = kPurpose != Purpose::move, kMoves = kPurpose != Purpose::see;
  Fresh<A> seen{lane.first, lane.second}, own;
  if (channels.in_steps()) {
    if constexpr (kSees) see(0, seen);
    lane.m -= load(channels.decay + c);
  }
  lane.refer_to(vmax(lane.m, M));
  const Reference<A> reference{lane.m, vexp_negative<false>(M - lane.m)};
  if (channels.in_steps()) {
    own = fresh(0, reference);
  } else {
    seen = {lane.first, lane.second};
    const Vec<A> lambda = load(channels.token.factor + c), lacking = load(channels.token.rest + c);
    const auto step = [&](int64_t i) SOLA_LAMBDA {
      const int64_t p = token_at(kDirection, i, tokens);
      if constexpr (kSees) see(p, seen);
      const Fresh<A> one = fresh(p, reference);
      if constexpr (kSees) seen = {lambda * seen.first + one.first, lambda * seen.second + one.second};
      own = {lambda * own.first + one.first, lambda * own.second + one.second};
    };
    const auto correct = [&](A steps) SOLA_LAMBDA {
      const Vec<A> x = lacking * steps;
      own = {own.first + own.first * x, own.second + own.second * x};
    };
    int64_t i = 0;
    for (; i + kGroup <= tokens; i += kGroup) {
#pragma GCC unroll 8
      for (int64_t j = 0; j < kGroup; ++j) step(i + j);
      correct(A(kGroup));
      const Vec<A> faded = load(channels.groups[i / kGroup + 1] + c);
      if constexpr (kSees) seen = {lane.first * faded + own.first, lane.second * faded + own.second};
    }
    const A left_over = A(tokens - i);
    for (; i < tokens; ++i) step(i);
    correct(left_over);
  }
  if constexpr (kMoves) {
    channels.fade(lane, c, tokens);
    lane.add(own, reference.share);
    lane.keep_in_range();
  }
}

// Sums of several stretches of tokens, one after the other: turns what each stretch sums up by itself into what enters
// it from the stretches before. `tokens` is the length of the stretch in question.
template <class A>
void connect(ScanState<A>& here, ScanState<A>& entering, const Channels<A>& channels, int64_t count, int64_t tokens) {
  for (int64_t c = 0; c < count; c += kLanes<A>) {
    auto own = Lane<A>::load_from(here, c), before = Lane<A>::load_from(entering, c);
    before.store_to(here, c);
    before.m -= A(tokens) * load(channels.decay + c);
    const Vec<A> reference = vmax(before.m, own.m);
    before.refer_to(reference);
    own.refer_to(reference);
    before.add({own.first, own.second}, own.gauge);
    before.first_low += own.first_low;
    before.second_low += own.second_low;
    before.keep_in_range();
    before.store_to(entering, c);
  }
}

// channels in a task: blocks of equal width
template <class A>
int64_t block_width(const WkvParams& p) {
  const int64_t blocks = (p.C + kBlock<A> - 1) / kBlock<A>;
  return round_up<A>((p.C + blocks - 1) / blocks);
}

// A stretch of tokens of one block of channels, cut into tiles
template <class A>
class Tiling {
 public:
  Tiling(const WkvParams& p, int64_t channel, int64_t tokens) : channel_(channel), tokens_(tokens) {
    count_ = std::min(block_width<A>(p), p.C - channel);
    channels_.load_from(static_cast<const A*>(p.decay) + channel, static_cast<const A*>(p.bonus) + channel, count_,
                        tokens);
  }

  const Channels<A>& channels() const { return channels_; }
  int64_t channel() const { return channel_; }
  int64_t count() const { return count_; }
  int64_t tokens() const { return tokens_; }
  int64_t tiles() const { return (tokens_ + channels_.tile_tokens - 1) / channels_.tile_tokens; }
  // place of a tile in its stretch, and its length
  int64_t first(int64_t t) const { return t * channels_.tile_tokens; }
  int64_t length(int64_t t) const { return t < tiles() - 1 ? channels_.tile_tokens : channels_.last_tile_tokens; }

  // calls f(c, part) for every vector of channels, with part = std::true_type{} where the row ends inside it
  template <class F>
  void over_vectors(const F& f) const {
    int64_t c = 0;
    for (; c + kLanes<A> <= count_; c += kLanes<A>) f(c, std::false_type{});
    if (c < count_) f(c, std::true_type{});
  }

 private:
  int64_t channel_, tokens_, count_;
  Channels<A> channels_;
};

// tiles in a stretch of so many tokens, at most, over all blocks of channels
template <class A>
int64_t most_tiles(const WkvParams& p, int64_t tokens) {
  int64_t most = 1;
  const int64_t width = block_width<A>(p);
  for (int64_t channel = 0; channel < p.C; channel += width) {
    const int64_t length = tile_tokens(static_cast<const A*>(p.decay) + channel,
                                       static_cast<const A*>(p.bonus) + channel, std::min(width, p.C - channel));
    most = std::max(most, (tokens + length - 1) / length);
  }
  return most;
}

// the largest log-weights of the tiles of a stretch, and the states that enter it
template <class A>
struct ScanSide {
  A* maxima;
  ScanState<A>*rights, *left;

  ScanSide(Arena& arena, int64_t tiles)
      : maxima(arena.take<A>(tiles * kBlock<A>)),
        rights(arena.take<ScanState<A>>(tiles)),
        left(arena.take<ScanState<A>>(1)) {}

  // null: nothing enters from that side
  void enter(const ScanState<A>* from_left, const ScanState<A>* from_right, int64_t tiles) {
    left->clear();
    rights[tiles - 1].clear();
    if (from_left) *left = *from_left;
    if (from_right) rights[tiles - 1] = *from_right;
  }
};

}  // namespace sola::SOLA_ISA
