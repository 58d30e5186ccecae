// bidirectional WKV: the decaying scan that forward and backward share
//
// A scan sums values under weights e^(x_i − decay·distance), x_i a log-weight per token and channel. Tokens are taken
// in tiles: with M the largest x of a tile and E_i = e^(x_i − M), the sums inside a tile need one exponential per token
// and multiplications by λ = e^−decay; a state (values, m), standing for values · e^m, carries them from tile to tile.
//
// Nothing that counts is lost as long as |decay|·T + |bonus| ≤ 40 for a tile of T tokens: a token whose E underflows
// (e^−86) is outweighed at every place that it reaches by the token that holds the maximum, by e^46 at least. Where
// decay or bonus are too large for that even with few tokens, tiles shrink to one token and decay moves into m.
#pragma once

#include <type_traits>

#include "cpu/tiles.h"

namespace sola::SOLA_ISA {

// channels of one task, four vectors, so that every row of tokens is read in pieces of several cache lines
template <class A>
constexpr int64_t kBlock = 4 * kLanes<A>;
constexpr int64_t kTileTokens = 32;
// the log-weight of an empty state: finite, so that differences never turn into Inf − Inf
constexpr double kEmpty = -1e30;

enum class Direction { left_to_right, right_to_left };

// The sums of `K` values over the tokens on one side, for one block of channels. With K = 4 the last two are the
// derivatives of the first two: Σ distance · weight · value, where the nearest token has distance 0.
template <class A, int K>
struct ScanState {
  A value[K][kBlock<A>];
  // a positive number of the size of the summed weights, to keep the values in range
  A gauge[kBlock<A>];
  A m[kBlock<A>];

  void clear() {
    std::memset(this, 0, sizeof(*this));
    fill(m, kBlock<A>, A(kEmpty));
  }
};

// one vector of a state
template <class A, int K>
struct Lane {
  Vec<A> value[K], gauge, m;

  static SOLA_INLINE Lane load_from(const ScanState<A, K>& state, int64_t c) {
    Lane lane;
    for (int i = 0; i < K; ++i) lane.value[i] = load(state.value[i] + c);
    lane.gauge = load(state.gauge + c);
    lane.m = load(state.m + c);
    return lane;
  }

  SOLA_INLINE void store_to(ScanState<A, K>& state, int64_t c) const {
    for (int i = 0; i < K; ++i) store(state.value[i] + c, value[i]);
    store(state.gauge + c, gauge);
    store(state.m + c, m);
  }

  SOLA_INLINE void rescale(Vec<A> factor) {
    for (int i = 0; i < K; ++i) value[i] *= factor;
    gauge *= factor;
  }

  // a factor of 1 + x for a tiny x
  SOLA_INLINE void grow(Vec<A> x) {
    for (int i = 0; i < K; ++i) value[i] += value[i] * x;
  }

  // values · e^m is kept, with m = reference; factors that underflow stand for sums that no longer count
  SOLA_INLINE void refer_to(Vec<A> reference) {
    rescale(vexp(m - reference));
    m = reference;
  }

  // takes one more token of weight E and values `fresh`, after everything has moved one token away
  SOLA_INLINE void step(Vec<A> lambda, Vec<A> weight, const Vec<A> (&fresh)[2]) {
    if constexpr (K == 4) {
      value[2] = lambda * (value[2] + value[0]);
      value[3] = lambda * (value[3] + value[1]);
    }
    value[0] = lambda * value[0] + weight * fresh[0];
    value[1] = lambda * value[1] + weight * fresh[1];
  }

  // keeps the values near 1 by moving their size into m; in range nothing happens, so nothing is rounded
  SOLA_INLINE void keep_in_range() {
    const Vec<A> one = splat<A>(1);
    const auto out_of_range = (gauge > A(0x1p30)) | ((gauge < A(0x1p-30)) & (gauge > A(0)));
    const Vec<A> size = out_of_range ? gauge : one;
    rescale(one / size);
    m += vlog(size);
  }
};

// what the tiles of one task need to know about its channels
template <class A>
struct Channels {
  A decay[kBlock<A>], bonus[kBlock<A>], lambda[kBlock<A>];
  // e^−decay / λ − 1: λ is rounded, and thousands of tokens would raise that to a visible power
  A drift[kBlock<A>];
  int64_t tile;
  int64_t width;  // channels in use, rounded up to whole vectors

  void load_from(const A* decays, const A* bonuses, int64_t first, int64_t count) {
    width = round_up<A>(count);
    convert_row(decays + first, count, decay, kBlock<A>);
    convert_row(bonuses + first, count, bonus, kBlock<A>);
    double longest = kTileTokens;
    for (int64_t c = 0; c < kBlock<A>; ++c) {
      const double exact = ::exp(-double(decay[c]));
      lambda[c] = A(exact);
      drift[c] = lambda[c] > A(0) && exact < double(INFINITY) ? A(exact / double(lambda[c]) - 1) : A(0);
      const double room = 40.0 - ::fabs(double(bonus[c])), rate = ::fabs(double(decay[c]));
      // also false for NaN
      const bool fits = room >= rate * longest;
      if (!fits) longest = room >= rate ? room / rate : 1.0;
    }
    tile = longest >= 2 ? int64_t(longest) : 1;
  }
};

// a tile of log-weights x: their maximum M per channel and E = e^(x − M), in place
template <class A>
SOLA_INLINE void exponentiate(A* x, int64_t tokens, int64_t width, A* maximum) {
  for (int64_t c = 0; c < width; c += kLanes<A>) {
    Vec<A> best = splat<A>(A(kEmpty));
    for (int64_t p = 0; p < tokens; ++p) best = vmax(load(x + p * kBlock<A> + c), best);
    store(maximum + c, best);
    for (int64_t p = 0; p < tokens; ++p) {
      store(x + p * kBlock<A> + c, vexp(load(x + p * kBlock<A> + c) - best));
    }
  }
}

// One tile as the scan sees it. `first` and `second` are the two values of every token (second null: 1), rows of
// kBlock.
template <class A>
struct ScanTile {
  const A* weight;   // E
  const A* maximum;  // M
  const A* first;
  const A* second;
  int64_t tokens;

  SOLA_INLINE void values(int64_t p, int64_t c, Vec<A> (&fresh)[2]) const {
    fresh[0] = load(first + p * kBlock<A> + c);
    fresh[1] = second ? load(second + p * kBlock<A> + c) : splat<A>(1);
  }
  SOLA_INLINE int64_t token(Direction direction, int64_t step) const {
    return direction == Direction::left_to_right ? step : tokens - 1 - step;
  }
};

// Moves one vector of a state across a tile, calling visit(p, lane) at every token with the sums over the tokens before
// it, in the reference `lane.m`.
template <class A, int K, class Visit>
SOLA_INLINE void scan_tile(const ScanTile<A>& tile, const Channels<A>& channels, int64_t c, Direction direction,
                           Lane<A, K>& lane, const Visit& visit) {
  const Vec<A> M = load(tile.maximum + c), lambda = load(channels.lambda + c);
  Vec<A> fresh[2];
  if (channels.tile == 1) {
    visit(0, lane);
    const Vec<A> decay = load(channels.decay + c);
    // decay goes into m; one unit of distance for the derivatives
    lane.m -= decay;
    if constexpr (K == 4) {
      lane.value[2] += lane.value[0];
      lane.value[3] += lane.value[1];
    }
    lane.refer_to(vmax(lane.m, M));
    tile.values(0, c, fresh);
    const Vec<A> weight = load(tile.weight + c) * vexp(M - lane.m);
    lane.value[0] += weight * fresh[0];
    lane.value[1] += weight * fresh[1];
    lane.gauge += weight;
    return;
  }
  lane.refer_to(vmax(lane.m, M));
  // half of what λ lacks over the tile before it and half behind it, so that tokens inside are right on average
  const Vec<A> half_drift = load(channels.drift + c) * (A(0.5) * A(tile.tokens));
  lane.grow(half_drift);
  const Vec<A> share = vexp(M - lane.m);
  Vec<A> shrink = splat<A>(1);
  for (int64_t step = 0; step < tile.tokens; ++step) {
    const int64_t p = tile.token(direction, step);
    visit(p, lane);
    tile.values(p, c, fresh);
    lane.step(lambda, load(tile.weight + p * kBlock<A> + c) * share, fresh);
    shrink *= lambda;
  }
  lane.grow(half_drift);
  lane.gauge = lane.gauge * shrink + share;
  lane.keep_in_range();
}

// the reference of the sums that scan_tile shows its visitor
template <class A, int K>
SOLA_INLINE Vec<A> reference_in_tile(const Lane<A, K>& entering, const Channels<A>& channels, Vec<A> M) {
  return channels.tile == 1 ? entering.m : vmax(entering.m, M);
}

template <class A, int K>
void advance(const ScanTile<A>& tile, const Channels<A>& channels, Direction direction, ScanState<A, K>& state) {
  for (int64_t c = 0; c < channels.width; c += kLanes<A>) {
    auto lane = Lane<A, K>::load_from(state, c);
    scan_tile(tile, channels, c, direction, lane, [](int64_t, const Lane<A, K>&) SOLA_LAMBDA {});
    lane.store_to(state, c);
  }
}

// Sums of several stretches of tokens, one after the other: turns what each stretch sums up by itself into what enters
// it from the stretches before. `tokens` is the length of the stretch in question.
template <class A, int K>
void connect(ScanState<A, K>& here, ScanState<A, K>& entering, const Channels<A>& channels, int64_t tokens) {
  for (int64_t c = 0; c < channels.width; c += kLanes<A>) {
    auto own = Lane<A, K>::load_from(here, c), before = Lane<A, K>::load_from(entering, c);
    before.store_to(here, c);
    if constexpr (K == 4) {
      before.value[2] += A(tokens) * before.value[0];
      before.value[3] += A(tokens) * before.value[1];
    }
    before.m -= A(tokens) * load(channels.decay + c);
    const Vec<A> reference = vmax(before.m, own.m);
    before.refer_to(reference);
    own.refer_to(reference);
    for (int i = 0; i < K; ++i) before.value[i] += own.value[i];
    before.gauge += own.gauge;
    before.keep_in_range();
    before.store_to(entering, c);
  }
}

// `tokens` rows of the first `count` channels of a block, the last vector padded with zeros. Asks for the rows of the
// tile that comes next in `direction`: a block's rows lie too far apart for the hardware to see a stream.
template <class In>
SOLA_INLINE void load_block(const In* from, int64_t stride, int64_t tokens, int64_t count, Acc<In>* to,
                            Direction direction = Direction::left_to_right) {
  using A = Acc<In>;
  constexpr int64_t L = kLanes<A>, W = kBlock<A>;
  const int64_t whole = count / L * L;
  const int64_t ahead = direction == Direction::left_to_right ? kTileTokens * stride : -kTileTokens * stride;
  for (int64_t p = 0; p < tokens; ++p) {
    prefetch_rows(from + p * stride + ahead, stride, 1, count);
    for (int64_t c = 0; c < whole; c += L) store(to + p * W + c, load(from + p * stride + c));
    if (whole < count) store(to + p * W + whole, load_part(from + p * stride + whole, count - whole));
  }
}
template <class In>
SOLA_INLINE void store_block(const Acc<In>* from, int64_t tokens, int64_t count, In* to, int64_t stride) {
  using A = Acc<In>;
  constexpr int64_t L = kLanes<A>, W = kBlock<A>;
  const int64_t whole = count / L * L;
  // a store to a row that is in no cache waits for it
  prefetch_rows(to + kTileTokens * stride, stride, tokens, count);
  for (int64_t p = 0; p < tokens; ++p) {
    for (int64_t c = 0; c < whole; c += L) store(to + p * stride + c, load(from + p * W + c));
    if (whole < count) store_part(to + p * stride + whole, load(from + p * W + whole), count - whole);
  }
}

// A stretch of tokens of one block of channels, cut into tiles
template <class A>
class Tiling {
 public:
  Tiling(const WkvParams& p, int64_t channel)
      : channel_(channel), count_(p.C - channel < kBlock<A> ? p.C - channel : kBlock<A>) {
    channels_.load_from(static_cast<const A*>(p.decay), static_cast<const A*>(p.bonus), channel, count_);
  }

  const Channels<A>& channels() const { return channels_; }
  int64_t channel() const { return channel_; }
  int64_t count() const { return count_; }
  int64_t tile() const { return channels_.tile; }
  int64_t tiles(int64_t tokens) const { return (tokens + tile() - 1) / tile(); }
  // place of a tile in its stretch, and its length
  int64_t first(int64_t t) const { return t * tile(); }
  int64_t length(int64_t t, int64_t tokens) const { return tokens - first(t) < tile() ? tokens - first(t) : tile(); }

 private:
  int64_t channel_, count_;
  Channels<A> channels_;
};

// tiles in a stretch of so many tokens, at most, over all blocks of channels
template <class A>
int64_t most_tiles(const WkvParams& p, int64_t tokens) {
  int64_t most = 1;
  for (int64_t channel = 0; channel < p.C; channel += kBlock<A>) {
    const int64_t tiles = Tiling<A>(p, channel).tiles(tokens);
    most = tiles > most ? tiles : most;
  }
  return most;
}

// E and M of a stretch, tile by tile, and the states that enter its tiles from the right
template <class A, int K>
struct ScanSide {
  A *weights, *maxima;
  ScanState<A, K>*rights, *left;

  void take_from(Arena& arena, int64_t tokens, int64_t tiles) {
    weights = arena.take<A>(tokens * kBlock<A>);
    maxima = arena.take<A>(tiles * kBlock<A>);
    rights = arena.take<ScanState<A, K>>(tiles);
    left = arena.take<ScanState<A, K>>(1);
  }

  void exponentiate_all(const Tiling<A>& tiling, int64_t tokens) {
    for (int64_t t = 0; t < tiling.tiles(tokens); ++t) {
      const int64_t length = tiling.length(t, tokens);
      exponentiate(weights + tiling.first(t) * kBlock<A>, length, tiling.channels().width, maxima + t * kBlock<A>);
    }
  }

  ScanTile<A> tile(const Tiling<A>& tiling, int64_t t, int64_t tokens, const A* first, const A* second) const {
    const int64_t W = kBlock<A>;
    return {weights + tiling.first(t) * W, maxima + t * W, first, second, tiling.length(t, tokens)};
  }

  // null on the left: the stretch is the whole sequence
  void enter(const ScanState<A, K>* from_left, const ScanState<A, K>* from_right, int64_t tiles) {
    if (from_left) {
      *left = *from_left;
      rights[tiles - 1] = *from_right;
    } else {
      left->clear();
      rights[tiles - 1].clear();
    }
  }
};

}  // namespace sola::SOLA_ISA
