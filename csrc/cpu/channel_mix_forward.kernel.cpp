// channel mix, forward: like attention over hidden units. A block of them is computed for a tile of tokens, squared,
// and multiplied into the tile's output before it leaves the caches.

#include "cpu/channel_mix.h"

namespace sola::SOLA_ISA {

template <class In, class Mul>
class ChannelMixForward {
  using A = Acc<In>;

 public:
  ChannelMixForward(const ChannelMixParams& p, const Task& task, int64_t rows)
      : p_(p), task_(task), arena_(task.scratch) {
    const int64_t tiles = tiles_of(rows), C = p.C;
    in_ = arena_.take<Mul>(tiles * C * kTile);
    out_ = arena_.take<A>(tiles * C * kTile);
    gate_ = arena_.take<A>(C * kTile);
    hidden_ = arena_.take<A>((kUnits + 1) * kTile);
    squares_ = is_bf16<Mul> ? arena_.take<Mul>((kUnits + 1) * kTile) : nullptr;
    keys_ = take_weights<Mul, In>(arena_, C * (C > kUnits ? C : kUnits));
    values_ = take_weights<Mul, In>(arena_, C * kUnits);
    staging_ = arena_.take<A>(kTile * C);
  }

  size_t scratch() const { return arena_.used(); }

  void run(int64_t begin, int64_t end, Units units, A* partial) {
    const int64_t C = p_.C, tiles = tiles_of(end - begin);
    A* out = partial ? partial : out_;
    for (int64_t t = 0; t < tiles; ++t) load_tile(p_.x_k, begin + t * kTile, end, in_ + t * C * kTile);
    for (int64_t m = units.first; m < units.last; m += kUnits) {
      const int64_t count = units.last - m < kUnits ? units.last - m : kUnits;
      const Left<Mul> keys = weights_block<Mul, In>(p_.key, m * C, C, count, C, keys_);
      const Left<Mul> values = weights_block<Mul, In>(p_.value, m, p_.M, C, count, values_);
      const Into into = m == units.first ? Into::overwrite : Into::accumulate;
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t width = tile_width<A>(end - begin - t * kTile);
        gemm(task_, Product<Mul>{count, width, C, keys, in_ + t * C * kTile, kTile, hidden_, kTile}, Into::overwrite);
        square(count, width);
        const Mul* squares = as_right(hidden_, count, squares_);
        gemm(task_, Product<Mul>{C, width, count, values, squares, kTile, out + t * C * kTile, kTile}, into);
      }
    }
    if (!partial) finish(begin, end, out, 1, 0);
  }

  // `count` partial sums, `size` numbers apart
  void finish(int64_t begin, int64_t end, const A* partial, int64_t count, int64_t size) {
    const int64_t C = p_.C;
    const Left<Mul> receptance = weights_block<Mul, In>(p_.receptance, 0, C, C, C, keys_);
    for (int64_t first = begin; first < end; first += kTile, partial += C * kTile) {
      const int64_t width = tile_width<A>(end - first);
      load_tile(p_.x_r, first, end, in_);
      gemm(task_, Product<Mul>{C, width, C, receptance, in_, kTile, gate_, kTile}, Into::overwrite);
      for (int64_t i = 0; i < C * kTile; i += kTile) {
        for (int64_t c = i; c < i + width; c += kLanes<A>) {
          Vec<A> total = load(partial + c);
          for (int64_t n = 1; n < count; ++n) total += load(partial + n * size + c);
          store(gate_ + c, sigmoid<A>(load(gate_ + c)) * total);
        }
      }
      store_tile<In>(gate_, end - first < kTile ? end - first : kTile, C, p_.out, first, staging_);
    }
  }

 private:
  void load_tile(const Rows& x, int64_t first, int64_t end, Mul* to) {
    pack_columns(row<In>(x, first), x.stride, end - first < kTile ? end - first : kTile, p_.C, to, kTile,
                 reinterpret_cast<Mul*>(staging_));
  }

  void square(int64_t count, int64_t width) {
    for (int64_t j = 0; j < count * kTile; j += kTile) {
      for (int64_t c = j; c < j + width; c += kLanes<A>) {
        const Vec<A> positive = relu(load(hidden_ + c));
        store(hidden_ + c, positive * positive);
      }
    }
  }

  const ChannelMixParams& p_;
  const Task& task_;
  Arena arena_;
  Mul *in_, *squares_, *keys_, *values_;
  A *out_, *gate_, *hidden_, *staging_;
};

static size_t scratch(const ChannelMixParams& p, const Task& task, int64_t rows) {
  return with_types(
      task, [&]<class In, class Mul>(Types<In, Mul>) { return ChannelMixForward<In, Mul>(p, task, rows).scratch(); });
}

static void run(const ChannelMixParams& p, const Task& task, Place place, Units units, void* partial) {
  with_types(task, [&]<class In, class Mul>(Types<In, Mul>) {
    ChannelMixForward<In, Mul>(p, task, place.end - place.begin)
        .run(place.begin, place.end, units, static_cast<Acc<In>*>(partial));
  });
}

static void finish(const ChannelMixParams& p, const Task& task, Place place, const void* partial, int64_t count,
                   int64_t size) {
  with_types(task, [&]<class In, class Mul>(Types<In, Mul>) {
    ChannelMixForward<In, Mul>(p, task, kTile)
        .finish(place.begin, place.end, static_cast<const Acc<In>*>(partial), count, size);
  });
}

extern const ChannelMixForwardKernels channel_mix_forward;
const ChannelMixForwardKernels channel_mix_forward{scratch, run, finish};

}  // namespace sola::SOLA_ISA
