// softmax attention, forward: online softmax over key blocks for a chunk of queries of one head
//
// Scores are computed transposed, keys × queries: every step of the softmax then runs along a vector of queries with no
// horizontal reduction, the values enter the second product as they lie, and head dims need no padding.

// D head dim, V value head dim; a tile is kTile queries wide

#include "cpu/softmax.h"

namespace sola::SOLA_ISA {

// The softmax of one block of keys for `width` queries: weights = 2^(unit·(scores − max)) over `keys` rows, in base 2.
// Scores are subtracted before they are multiplied, which is exact where they are large. Updates max and sum; leaves
// 2^(unit·(old max − new max)) in rescale.
template <class A, class W>
void softmax_block(const A* scores, int64_t keys, int64_t width, A unit, W* weights, A* max, A* sum, A* rescale) {
  constexpr int L = kLanes<A>;
  constexpr bool kRough = sizeof(W) == 2;
  for (int64_t c = 0; c < width; c += L) {
    Vec<A> best = splat<A>(-INFINITY), other = best;
    for (int64_t j = 0; j < keys; j += 2) {
      best = vmax(load(scores + j * kTile + c), best);
      other = vmax(load(scores + (j + (j + 1 < keys)) * kTile + c), other);
    }
    best = vmax(vmax(best, other), load(max + c));
    // a column of −Inf so far must give 2^−Inf = 0 and not 2^(−Inf + Inf)
    const Vec<A> shift = best == -INFINITY ? splat<A>(0) : best;
    const Vec<A> factor = vexp2<false>((load(max + c) - shift) * unit);
    Vec<A> total{};
    for (int64_t j = 0; j < keys; j += 2) {
      const Vec<A> first = vexp2<kRough>((load(scores + j * kTile + c) - shift) * unit);
      const Vec<A> second =
          j + 1 < keys ? vexp2<kRough>((load(scores + (j + 1) * kTile + c) - shift) * unit) : splat<A>(0);
      total += first + second;
      store_pair(weights, j, c, first, second);
    }
    store(max + c, best);
    store(sum + c, load(sum + c) * factor + total);
    store(rescale + c, factor);
  }
}

template <class In, class Mul>
class SoftmaxForward {
  using A = Acc<In>;
  static constexpr bool kNative = is_bf16<Mul>;
  // keys per block: the scores of a tile and its weights stay in the first cache
  static constexpr int64_t kKeys = 128;

 public:
  SoftmaxForward(const SoftmaxParams& p, const Task& task, int64_t rows) : p_(p), task_(task), arena_(task.scratch) {
    const auto& s = p.size;
    const int64_t tiles = align_up(rows, kTile) / kTile;
    queries_ = arena_.take<Mul>(tiles * align_up(s.D, 2) * kTile);
    out_ = arena_.take<A>(tiles * s.V * kTile);
    max_ = arena_.take<A>(tiles * kTile);
    sum_ = arena_.take<A>(tiles * kTile);
    rescale_ = arena_.take<A>(kTile);
    keys_ = arena_.take<Mul>(kKeys * s.D);
    values_ = arena_.take<Mul>(kKeys * s.V);
    scores_ = arena_.take<A>((kKeys + 1) * kTile);
    weights_ = kNative ? arena_.take<Mul>((kKeys + 1) * kTile) : nullptr;
    staging_ = arena_.take<A>(kTile * align_up(s.D > s.V ? s.D : s.V, 2));
  }

  size_t scratch() const { return arena_.used(); }

  void run(int64_t batch, int64_t head, int64_t begin, int64_t end) {
    const auto& s = p_.size;
    const int64_t tiles = align_up(end - begin, kTile) / kTile;
    for (int64_t t = 0; t < tiles; ++t) start_tile(batch, head, begin + t * kTile, end, t);
    const int64_t visible = p_.causal && end < s.M ? end : s.M;
    for (int64_t k0 = 0; k0 < visible; k0 += kKeys) {
      const int64_t count = visible - k0 < kKeys ? visible - k0 : kKeys;
      const Left<Mul> keys = load_keys(batch, head, k0, count);
      load_values(batch, head, k0, count);
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t first = begin + t * kTile;
        if (!p_.causal || k0 < first + kTile) attend(keys, k0, count, first, tile_width<A>(end - first), t);
      }
    }
    for (int64_t t = 0; t < tiles; ++t) finish_tile(batch, head, begin + t * kTile, end, t);
  }

 private:
  void start_tile(int64_t batch, int64_t head, int64_t first, int64_t end, int64_t t) {
    const auto& s = p_.size;
    const int64_t rows = end - first < kTile ? end - first : kTile;
    const In* from = at<In>(p_.q, batch, first, head);
    pack_columns(from, p_.q.token, rows, s.D, queries(t), kTile, reinterpret_cast<Mul*>(staging_));
    fill(out_ + t * s.V * kTile, s.V * kTile, A(0));
    fill(max_ + t * kTile, kTile, A(-INFINITY));
    fill(sum_ + t * kTile, kTile, A(0));
  }

  Left<Mul> load_keys(int64_t batch, int64_t head, int64_t k0, int64_t count) {
    const In* from = at<In>(p_.k, batch, k0, head);
    if constexpr (std::is_same_v<In, Mul>) {
      if (!kNative || p_.k.token < kFarthestRows) return {from, p_.k.token, 1};
    }
    load_rows(from, p_.k.token, count, p_.size.D, keys_, p_.size.D);
    return {keys_, p_.size.D, 1};
  }

  // bfloat16 needs the values transposed, V × keys; otherwise the product reads them sideways
  void load_values(int64_t batch, int64_t head, int64_t k0, int64_t count) {
    const int64_t V = p_.size.V;
    const In* from = at<In>(p_.v, batch, k0, head);
    if constexpr (kNative) {
      transpose_rows(from, p_.v.token, count, V, values_, kKeys);
      if (count % 2) {
        for (int64_t i = 0; i < V; ++i) values_[i * kKeys + count] = Mul{};
      }
    } else {
      load_rows(from, p_.v.token, count, V, values_, V);
    }
  }

  void attend(const Left<Mul>& keys, int64_t k0, int64_t count, int64_t first, int64_t width, int64_t t) {
    const auto& s = p_.size;
    gemm(task_, Product<Mul>{count, width, s.D, keys, queries(t), kTile, scores_, kTile}, Into::overwrite);
    const A unit = apply_scale(scores_, count, width, A(p_.scale * kLog2e));
    if (p_.causal && k0 + count > first + 1) mask_future(scores_, k0, count, first, A(-INFINITY));
    A* max = max_ + t * kTile;
    A* sum = sum_ + t * kTile;
    Product<Mul> product{s.V, width, count, {values_, 1, s.V}, nullptr, kTile, out_ + t * s.V * kTile, kTile, rescale_};
    if constexpr (kNative) {
      softmax_block(scores_, count, width, unit, weights_, max, sum, rescale_);
      product.a = {values_, kKeys, 1};
      product.b = weights_;
    } else {
      softmax_block(scores_, count, width, unit, scores_, max, sum, rescale_);
      product.b = scores_;
    }
    gemm(task_, product, Into::scale_columns);
  }

  void finish_tile(int64_t batch, int64_t head, int64_t first, int64_t end, int64_t t) {
    const auto& s = p_.size;
    const int64_t rows = end - first < kTile ? end - first : kTile;
    A* out = out_ + t * s.V * kTile;
    A* lse = static_cast<A*>(p_.logsumexp) + (batch * s.H + head) * s.N + first;
    // no key at all gives 0; a sum of 0 over existing keys is −Inf scores throughout, where softmax is 0/0
    const bool empty = s.M == 0;
    const A nats = nats_of_score<A>(p_.scale);
    constexpr int L = kLanes<A>;
    for (int64_t c = 0; c < kTile; c += L) {
      Vec<A> total = load(sum_ + t * kTile + c);
      Vec<A> inverse = empty ? splat<A>(0) : A(1) / total;
      for (int64_t i = 0; i < s.V; ++i) store(out + i * kTile + c, load(out + i * kTile + c) * inverse);
      store(sum_ + t * kTile + c, rounded(load(max_ + t * kTile + c) * nats) + vlog(total));
    }
    std::memcpy(lse, sum_ + t * kTile, rows * sizeof(A));
    transpose_rows(out, kTile, s.V, kTile, staging_, s.V);
    store_rows(staging_, s.V, rows, s.V, at<In>(p_.out, batch, first, head), p_.out.token);
  }

  Mul* queries(int64_t t) { return queries_ + t * align_up(p_.size.D, 2) * kTile; }

  const SoftmaxParams& p_;
  const Task& task_;
  Arena arena_;
  Mul *queries_, *keys_, *values_, *weights_;
  A *out_, *max_, *sum_, *rescale_, *scores_, *staging_;
};

static size_t scratch(const SoftmaxParams& p, const Task& task, int64_t rows) {
  return with_types(
      task, [&]<class In, class Mul>(Types<In, Mul>) { return SoftmaxForward<In, Mul>(p, task, rows).scratch(); });
}

static void run(const SoftmaxParams& p, const Task& task, Place place) {
  with_types(task, [&]<class In, class Mul>(Types<In, Mul>) {
    SoftmaxForward<In, Mul>(p, task, place.end - place.begin).run(place.batch, place.head, place.begin, place.end);
  });
}

extern const SoftmaxForwardKernels softmax_forward;
const SoftmaxForwardKernels softmax_forward{scratch, run};

}  // namespace sola::SOLA_ISA
