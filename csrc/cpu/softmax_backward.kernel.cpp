// softmax attention, backward: the weights are computed again from logsumexp, tile by tile
//
//   P = exp(scale·QKᵀ − lse)      dV = Pᵀ dO
//   dS = scale · P ∘ (dO Vᵀ − δ)  dK = dSᵀ Q    dQ = dS K      δ_i = dO_i · O_i
//
// A split walks over its share of query tiles and, inside, over all key blocks: dQ is finished tile by tile, dK and dV
// are summed per split and added up afterwards in a fixed order, so the result does not depend on timing.

// D head dim, V value head dim, both padded to whole vectors as Dp and Vp where they are the width of a product

#include "cpu/softmax.h"

namespace sola::SOLA_ISA {

template <class In, class Mul>
class SoftmaxBackward {
  using A = Acc<In>;
  static constexpr bool kNative = is_bf16<Mul>;
  static constexpr bool kConvert = !std::is_same_v<In, Mul>;
  // keys per block: two tiles of scores stay in the first cache
  static constexpr int64_t kKeys = kNative ? 128 : 64;

 public:
  SoftmaxBackward(const SoftmaxParams& p, const Task& task, Split split)
      : p_(p),
        task_(task),
        split_(split),
        Dp_(round_up<A>(p.size.D)),
        Vp_(round_up<A>(p.size.V)),
        arena_(task.scratch) {
    const int64_t D2 = align_up(p.size.D, 2), V2 = align_up(p.size.V, 2), keys = align_up(p.size.M, 2);
    sums_ = split.sums ? static_cast<A*>(split.sums) : arena_.take<A>(sums_count());
    key_rows_ = packs_keys() ? arena_.take<Mul>(keys * Dp_) : nullptr;
    // widened keys serve both as left and as right operand
    keys_ = kConvert ? key_rows_ : copies(p.k) ? arena_.take<Mul>(p.size.M * p.size.D) : nullptr;
    values_ = copies(p.v) ? arena_.take<Mul>(p.size.M * p.size.V) : nullptr;
    queries_t_ = arena_.take<Mul>(D2 * kTile);
    grads_t_ = arena_.take<Mul>(V2 * kTile);
    query_rows_ = arena_.take<Mul>(kTile * Dp_);
    grad_rows_ = arena_.take<Mul>(kTile * Vp_);
    grad_q_ = arena_.take<A>(kTile * Dp_);
    scores_ = arena_.take<A>(kKeys * kTile);
    grad_scores_ = arena_.take<A>(kKeys * kTile);
    weights_ = kNative ? arena_.take<Mul>(kKeys * kTile) : nullptr;
    grad_weights_ = kNative ? arena_.take<Mul>(kKeys * kTile) : nullptr;
    sideways_ = kNative ? arena_.take<Mul>(kTile * kKeys) : nullptr;
    lse_ = arena_.take<A>(kTile);
    delta_ = arena_.take<A>(kTile);
    staging_ = arena_.take<A>(kTile * (D2 > V2 ? D2 : V2));
  }

  size_t scratch() const { return arena_.used(); }
  int64_t sums_count() const { return p_.size.M * (Dp_ + Vp_); }

  // all queries of one head that fall to this split
  void run(Place place) {
    fill(sums_, sums_count(), A(0));
    load_head(place.batch, place.head);
    const int64_t tiles = align_up(p_.size.N, kTile) / kTile;
    for (int64_t t = split_.index; t < tiles; t += split_.count) query_tile(place.batch, place.head, t * kTile);
    if (!split_.sums) write_sums({place.batch, place.head, 0, p_.size.M});
  }

  // keys [begin, end): the sums of all splits are added up into the first and written out
  void finish(Place place) {
    for (int64_t other = 1; other < split_.count; ++other) {
      const A* from = sums_ + other * sums_count();
      add(from, sums_, place.begin * Dp_, place.end * Dp_);
      add(from, sums_, p_.size.M * Dp_ + place.begin * Vp_, p_.size.M * Dp_ + place.end * Vp_);
    }
    write_sums(place);
  }

 private:
  // as the right operand of dQ = dS K the keys must be padded rows of Mul; often they lie so already
  bool packs_keys() const { return kNative || kConvert || Dp_ != p_.size.D; }

  // as left operands keys and values are multiplied as they lie, where type and stride allow
  static bool copies(const View& view) { return kConvert || (kNative && view.token >= kFarthestRows); }

  void load_head(int64_t batch, int64_t head) {
    const auto& s = p_.size;
    if (packs_keys()) pack_rows(at<In>(p_.k, batch, 0, head), p_.k.token, s.M, s.D, key_rows_, Dp_);
    if (keys_ && keys_ != key_rows_) load_rows(at<In>(p_.k, batch, 0, head), p_.k.token, s.M, s.D, keys_, s.D);
    if (values_) load_rows(at<In>(p_.v, batch, 0, head), p_.v.token, s.M, s.V, values_, s.V);
  }

  Left<Mul> left(const View& view, const Mul* copy, int64_t width, int64_t batch, int64_t head, int64_t k0) {
    if (copy) return {copy + k0 * width, width, 1};
    return {reinterpret_cast<const Mul*>(at<In>(view, batch, k0, head)), view.token, 1};
  }

  void query_tile(int64_t batch, int64_t head, int64_t first) {
    const auto& s = p_.size;
    const int64_t rows = s.N - first < kTile ? s.N - first : kTile;
    load_queries(batch, head, first, rows);
    fill(grad_q_, kTile * Dp_, A(0));
    const int64_t width = tile_width<A>(rows);
    const int64_t visible = p_.causal && first + rows < s.M ? first + rows : s.M;
    for (int64_t k0 = 0; k0 < visible; k0 += kKeys) {
      const int64_t count = visible - k0 < kKeys ? visible - k0 : kKeys;
      gemm(task_,
           Product<Mul>{count, width, s.D, left(p_.k, keys_, kConvert ? Dp_ : s.D, batch, head, k0), queries_t_, kTile,
                        scores_, kTile},
           Into::overwrite);
      gemm(task_,
           Product<Mul>{count, width, s.V, left(p_.v, values_, s.V, batch, head, k0), grads_t_, kTile, grad_scores_,
                        kTile},
           Into::overwrite);
      apply_scale(scores_, count, tile_width<A>(rows), A(p_.scale * kLog2e));
      if (p_.causal && k0 + count > first + 1) mask_future(scores_, k0, count, first, A(-INFINITY));
      differentiate(count, rows);
      accumulate(batch, head, k0, count, rows);
    }
    store_rows(grad_q_, Dp_, rows, s.D, at<In>(p_.grad_q, batch, first, head), p_.grad_q.token);
  }

  void load_queries(int64_t batch, int64_t head, int64_t first, int64_t rows) {
    const auto& s = p_.size;
    const In* q = at<In>(p_.q, batch, first, head);
    const In* grad = at<In>(p_.grad_out, batch, first, head);
    pack_columns(q, p_.q.token, rows, s.D, queries_t_, kTile, reinterpret_cast<Mul*>(staging_));
    pack_columns(grad, p_.grad_out.token, rows, s.V, grads_t_, kTile, reinterpret_cast<Mul*>(staging_));
    if (rows < kTile) {
      fill(query_rows_, kTile * Dp_, Mul{});
      fill(grad_rows_, kTile * Vp_, Mul{});
    }
    pack_rows(q, p_.q.token, rows, s.D, query_rows_, Dp_);
    pack_rows(grad, p_.grad_out.token, rows, s.V, grad_rows_, Vp_);
    fill(lse_, kTile, A(0));
    fill(delta_, kTile, A(0));
    std::memcpy(lse_, static_cast<const A*>(p_.logsumexp) + (batch * s.H + head) * s.N + first, rows * sizeof(A));
    for (int64_t r = 0; r < rows; ++r) {
      delta_[r] = dot(at<In>(p_.grad_out, batch, first + r, head), at<In>(p_.out, batch, first + r, head), s.V);
    }
  }

  // scores -> P, grad_scores = dO Vᵀ -> dS; in nats first, rounded as logsumexp was
  void differentiate(int64_t count, int64_t rows) {
    constexpr int L = kLanes<A>;
    const A scale = A(p_.scale), nats = nats_of_score<A>(p_.scale);
    for (int64_t c = 0; c < tile_width<A>(rows); c += L) {
      const Vec<A> lse = load(lse_ + c), delta = load(delta_ + c);
      for (int64_t j = 0; j < count; ++j) {
        const int64_t i = j * kTile + c;
        const Vec<A> weight = vexp2<kNative>((rounded(load(scores_ + i) * nats) - lse) * A(kLog2e));
        const Vec<A> grad = weight * (load(grad_scores_ + i) - delta) * scale;
        store(weights() + i, weight);
        store(grad_weights() + i, grad);
      }
    }
    // bfloat16 products take the rows in pairs
    for (int64_t j = 0; rows % 2 && j < count; ++j)
      weights()[j * kTile + rows] = grad_weights()[j * kTile + rows] = Mul{};
  }

  Mul* weights() {
    if constexpr (kNative) {
      return weights_;
    } else {
      return scores_;
    }
  }
  Mul* grad_weights() {
    if constexpr (kNative) {
      return grad_weights_;
    } else {
      return grad_scores_;
    }
  }

  void accumulate(int64_t batch, int64_t head, int64_t k0, int64_t count, int64_t rows) {
    const auto& s = p_.size;
    A* grad_k = sums_ + k0 * Dp_;
    A* grad_v = sums_ + s.M * Dp_ + k0 * Vp_;
    const Mul* grads = grad_weights();
    Product<Mul> to_q{rows, Dp_, count, {}, key_rows_ + k0 * Dp_, Dp_, grad_q_, Dp_};
    if constexpr (kNative) {
      transpose_rows(grads, kTile, count, rows, sideways_, kKeys);
      if (count % 2) {
        for (int64_t r = 0; r < rows; ++r) sideways_[r * kKeys + count] = Mul{};
      }
      to_q.a = {sideways_, kKeys, 1};
    } else {
      to_q.a = {grads, 1, kTile};
      if (!packs_keys()) {
        to_q.b = reinterpret_cast<const Mul*>(at<In>(p_.k, batch, k0, head));
        to_q.ldb = p_.k.token;
      }
    }
    gemm(task_, Product<Mul>{count, Vp_, rows, {weights(), kTile, 1}, grad_rows_, Vp_, grad_v, Vp_}, Into::accumulate);
    gemm(task_, Product<Mul>{count, Dp_, rows, {grads, kTile, 1}, query_rows_, Dp_, grad_k, Dp_}, Into::accumulate);
    gemm(task_, to_q, Into::accumulate);
  }

  static void add(const A* from, A* to, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kLanes<A>) store(to + i, load(to + i) + load(from + i));
  }

  void write_sums(Place place) {
    const auto& s = p_.size;
    const int64_t rows = place.end - place.begin;
    In* grad_k = at<In>(p_.grad_k, place.batch, place.begin, place.head);
    In* grad_v = at<In>(p_.grad_v, place.batch, place.begin, place.head);
    store_rows(sums_ + place.begin * Dp_, Dp_, rows, s.D, grad_k, p_.grad_k.token);
    store_rows(sums_ + s.M * Dp_ + place.begin * Vp_, Vp_, rows, s.V, grad_v, p_.grad_v.token);
  }

  const SoftmaxParams& p_;
  const Task& task_;
  Split split_;
  int64_t Dp_, Vp_;
  Arena arena_;
  A *sums_, *grad_q_, *scores_, *grad_scores_, *lse_, *delta_, *staging_;
  Mul *key_rows_, *keys_, *values_, *queries_t_, *grads_t_, *query_rows_, *grad_rows_, *weights_, *grad_weights_,
      *sideways_;
};

static size_t scratch(const SoftmaxParams& p, const Task& task, Split split) {
  return with_types(
      task, [&]<class In, class Mul>(Types<In, Mul>) { return SoftmaxBackward<In, Mul>(p, task, split).scratch(); });
}

static int64_t sums(const SoftmaxParams& p, const Task& task) {
  return with_types(
      task, [&]<class In, class Mul>(Types<In, Mul>) { return SoftmaxBackward<In, Mul>(p, task, {}).sums_count(); });
}

static void run(const SoftmaxParams& p, const Task& task, Place place, Split split) {
  with_types(task, [&]<class In, class Mul>(Types<In, Mul>) { SoftmaxBackward<In, Mul>(p, task, split).run(place); });
}

static void finish(const SoftmaxParams& p, const Task& task, Place place, Split split) {
  with_types(task,
             [&]<class In, class Mul>(Types<In, Mul>) { SoftmaxBackward<In, Mul>(p, task, split).finish(place); });
}

extern const SoftmaxBackwardKernels softmax_backward;
const SoftmaxBackwardKernels softmax_backward{scratch, sums, run, finish};

}  // namespace sola::SOLA_ISA
