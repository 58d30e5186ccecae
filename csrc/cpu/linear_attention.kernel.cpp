// linear attention with one global state
//
//   S = Σ_j φ(k_j)ᵀ v_j     z = Σ_j φ(k_j)     out_i = φ(q_i) S / (φ(q_i)·z + eps)
//
// Forward: tasks gather shares of (S, z) over ranges of keys, the shares are added in a fixed order, then tasks read
// the state for ranges of queries. Backward: the same with (q, dO) gathering (dS, dz), which the keys read.

// D head dim, V value head dim, padded to whole vectors as Dp and Vp; a share is S (D × Vp) followed by z (Dp)

#include "cpu/linear.h"
#include "cpu/multiplier.h"

namespace sola::SOLA_ISA {

template <class In, class Mul>
class LinearAttention {
  using A = Acc<In>;
  // tokens per tile: φ(k), v and the state share the first cache
  static constexpr int64_t kRows = 64;

 public:
  LinearAttention(const LinearParams& p, const Task& task)
      : p_(p),
        Dp_(round_up<A>(p.size.D)),
        Vp_(round_up<A>(p.size.V)),
        arena_(task.scratch),
        gather_(task, arena_, kRows * Dp_, kRows * Vp_),
        read_(task, arena_, kRows * Dp_, Dp_ * Vp_),
        read_t_(task, arena_, kRows * Vp_, Vp_ * Dp_) {
    phi_ = arena_.take<A>(kRows * Dp_);
    values_ = arena_.take<A>(kRows * Vp_);
    features_ = arena_.take<A>(kRows * Dp_);
    result_ = arena_.take<A>(kRows * Vp_);
    state_ = arena_.take<A>(p.size.D * Vp_);
    state_t_ = arena_.take<A>(p.size.V * Dp_);
    key_sum_ = arena_.take<A>(Dp_);
    grad_denominators_ = arena_.take<A>(kRows);
  }

  size_t scratch() const { return arena_.used(); }
  int64_t share() const { return p_.size.D * Vp_ + Dp_; }

  // (S, z) of keys [begin, end)
  void gather(Place place, A* share) {
    fill(share, this->share(), A(0));
    for_tiles(place, [&](int64_t first, int64_t rows) {
      map_rows<Mul>(p_.map, at<In>(p_.k, place.batch, first, place.head), p_.k.token, rows, p_.size.D, phi_, Dp_);
      load_values(place, first, rows);
      accumulate(place, first, rows, {p_.k, p_.size.D}, {p_.v, p_.size.V}, share);
      add_rows<A>(phi_, rows, nullptr, share + p_.size.D * Vp_, Dp_);
    });
  }

  // adds up all shares of a head, pair by pair, so that none is rounded more than log₂ times; with the saved state as
  // target in the forward
  void combine(Place place, Split split) {
    A* shares = static_cast<A*>(split.sums);
    for (int64_t step = 1; step < split.count; step *= 2) {
      for (int64_t first = 0; first + step < split.count; first += 2 * step) {
        add_row(shares + (first + step) * share(), shares + first * share(), share(), A(1));
      }
    }
    if (!p_.state) return;
    const auto& s = p_.size;
    const int64_t head = place.batch * s.H + place.head;
    store_rows(shares, Vp_, s.D, s.V, static_cast<A*>(p_.state) + head * s.D * s.V, s.V);
    convert_row(shares + s.D * Vp_, s.D, static_cast<A*>(p_.key_sum) + head * s.D, s.D);
  }

  // out of queries [begin, end)
  void read(Place place) {
    const auto& s = p_.size;
    load_state(place);
    for_tiles(place, [&](int64_t first, int64_t rows) {
      map_rows<Mul>(p_.map, at<In>(p_.q, place.batch, first, place.head), p_.q.token, rows, s.D, phi_, Dp_);
      read_state(place, first, rows, {p_.q, s.D}, {p_.q, 0});
      for (int64_t r = 0; p_.normalize && r < rows; ++r) scale_row(result_ + r * Vp_, Vp_, inverse(r));
      store_rows(result_, Vp_, rows, s.V, at<In>(p_.out, place.batch, first, place.head), p_.out.token);
    });
  }

  // dq of queries [begin, end), and their share of (dS, dz). With n = φ(q) S, d = φ(q)·z + eps, r = 1/d:
  //   dn = r dO     dd = −r dO·out = −r² φ(q)·g     with g = dO Sᵀ
  //   dφ(q) = r g + dd z     dS = Σ φ(q)ᵀ dn     dz = Σ dd φ(q)
  void query_gradients(Place place, A* share) {
    const auto& s = p_.size;
    load_state(place);
    set_transposed(state_);
    fill(share, this->share(), A(0));
    for_tiles(place, [&](int64_t first, int64_t rows) {
      map_rows<Mul>(p_.map, at<In>(p_.q, place.batch, first, place.head), p_.q.token, rows, s.D, phi_, Dp_);
      load_rows(at<In>(p_.grad_out, place.batch, first, place.head), p_.grad_out.token, rows, s.V, values_, Vp_);
      read_t_.set_left({values_, Vp_, 1}, rows, s.V);
      read_t_.run(0, rows, features_, Dp_, Into::overwrite);
      for (int64_t r = 0; p_.normalize && r < rows; ++r) {
        const A factor = inverse(r);
        A* g = features_ + r * Dp_;
        grad_denominators_[r] = -factor * factor * dot(phi_ + r * Dp_, g, Dp_);
        scale_row(g, Dp_, factor);
        add_row(key_sum_, g, Dp_, grad_denominators_[r]);
        scale_row(values_ + r * Vp_, Vp_, factor);
      }
      if (p_.normalize) add_rows<A>(phi_, rows, grad_denominators_, share + s.D * Vp_, Dp_);
      accumulate(place, first, rows, {p_.q, s.D}, {p_.grad_out, s.V}, share);
      store_mapped_gradient(p_.map, features_, phi_, rows, s.D, Dp_, at<In>(p_.grad_q, place.batch, first, place.head),
                            p_.grad_q.token);
    });
  }

  // dk and dv of keys [begin, end):  dφ(k) = v dSᵀ + dz     dv = φ(k) dS
  void key_gradients(Place place, const A* sums) {
    const auto& s = p_.size;
    const A* grad_sum = sums + s.D * Vp_;
    read_.set_right(sums, Vp_, s.D, Vp_);
    set_transposed(sums);
    for_tiles(place, [&](int64_t first, int64_t rows) {
      map_rows<Mul>(p_.map, at<In>(p_.k, place.batch, first, place.head), p_.k.token, rows, s.D, phi_, Dp_);
      load_values(place, first, rows);
      for (int64_t r = 0; r < rows; ++r) std::memcpy(features_ + r * Dp_, grad_sum, Dp_ * sizeof(A));
      read_t_.set_left({values_, Vp_, 1}, rows, s.V);
      read_t_.run(0, rows, features_, Dp_, Into::accumulate);
      store_mapped_gradient(p_.map, features_, phi_, rows, s.D, Dp_, at<In>(p_.grad_k, place.batch, first, place.head),
                            p_.grad_k.token);
      read_state(place, first, rows, {p_.k, s.D}, {p_.v, s.V});
      store_rows(result_, Vp_, rows, s.V, at<In>(p_.grad_v, place.batch, first, place.head), p_.grad_v.token);
    });
  }

 private:
  struct Source {
    const View& view;
    int64_t columns;
  };

  template <class F>
  void for_tiles(Place place, const F& f) {
    for (int64_t first = place.begin; first < place.end; first += kRows) {
      f(first, place.end - first < kRows ? place.end - first : kRows);
    }
  }

  // Calls f(begin, end) over [0, count) in small steps, and between them asks for the next tile's rows of two views:
  // all at once, they would stall the core until most have arrived.
  template <class F>
  void while_prefetching(Place place, int64_t first, Source one, Source two, int64_t count, const F& f) {
    // rows of two micro-kernels; brgemm has a call to make
    constexpr int64_t kStep = is_bf16<Mul> ? 32 : 12;
    const int64_t next = first + kRows, rows = place.end - next < kRows ? place.end - next : kRows;
    for (int64_t begin = 0; begin < count; begin += kStep) {
      const int64_t end = count - begin < kStep ? count : begin + kStep;
      const int64_t from = rows * begin / count, to = rows * end / count;
      for (const Source& source : {one, two}) {
        if (rows < 1 || source.columns < 1) continue;
        prefetch_rows(at<In>(source.view, place.batch, next + from, place.head), source.view.token, to - from,
                      source.columns);
      }
      f(begin, end);
    }
  }

  // a packed copy: rows a power of two apart would fight for the same lines of the first cache
  void load_values(Place place, int64_t first, int64_t rows) {
    load_rows(at<In>(p_.v, place.batch, first, place.head), p_.v.token, rows, p_.size.V, values_, Vp_);
  }

  // share += φᵀ · values
  void accumulate(Place place, int64_t first, int64_t rows, Source one, Source two, A* share) {
    gather_.set_left({phi_, 1, Dp_}, p_.size.D, rows);
    gather_.set_right(values_, Vp_, rows, Vp_);
    while_prefetching(place, first, one, two, p_.size.D, [&](int64_t begin, int64_t end) {
      gather_.run(begin, end - begin, share + begin * Vp_, Vp_, Into::accumulate);
    });
  }

  // result = φ · state
  void read_state(Place place, int64_t first, int64_t rows, Source one, Source two) {
    read_.set_left({phi_, Dp_, 1}, rows, p_.size.D);
    while_prefetching(place, first, one, two, rows, [&](int64_t begin, int64_t end) {
      read_.run(begin, end - begin, result_ + begin * Vp_, Vp_, Into::overwrite);
    });
  }

  void load_state(Place place) {
    const auto& s = p_.size;
    const int64_t head = place.batch * s.H + place.head;
    load_rows(static_cast<const A*>(p_.state) + head * s.D * s.V, s.V, s.D, s.V, state_, Vp_);
    read_.set_right(state_, Vp_, s.D, Vp_);
    convert_row(static_cast<const A*>(p_.key_sum) + head * s.D, s.D, key_sum_, Dp_);
    round_row<Mul>(key_sum_, key_sum_, Dp_);
  }

  void set_transposed(const A* state) {
    const auto& s = p_.size;
    transpose_rows(state, Vp_, s.D, s.V, state_t_, Dp_);
    for (int64_t v = 0; v < s.V; ++v) fill(state_t_ + v * Dp_ + s.D, Dp_ - s.D, A(0));
    read_t_.set_right(state_t_, Dp_, s.V, Dp_);
  }

  A inverse(int64_t r) { return reciprocal(dot(phi_ + r * Dp_, key_sum_, Dp_) + A(p_.eps)); }

  const LinearParams& p_;
  int64_t Dp_, Vp_;
  Arena arena_;
  // φᵀ · values, φ · state, values · stateᵀ
  Multiplier<Mul, A> gather_, read_, read_t_;
  A *phi_, *values_, *features_, *result_, *state_, *state_t_, *key_sum_, *grad_denominators_;
};

static size_t scratch(const LinearParams& p, const Task& task) {
  return with_types(task,
                    [&]<class In, class Mul>(Types<In, Mul>) { return LinearAttention<In, Mul>(p, task).scratch(); });
}

static int64_t share(const LinearParams& p, const Task& task) {
  return with_types(task,
                    [&]<class In, class Mul>(Types<In, Mul>) { return LinearAttention<In, Mul>(p, task).share(); });
}

static void gather(const LinearParams& p, const Task& task, Place place, void* share) {
  with_types(task, [&]<class In, class Mul>(Types<In, Mul>) {
    LinearAttention<In, Mul>(p, task).gather(place, static_cast<Acc<In>*>(share));
  });
}

static void combine(const LinearParams& p, const Task& task, Place place, Split split) {
  with_types(task,
             [&]<class In, class Mul>(Types<In, Mul>) { LinearAttention<In, Mul>(p, task).combine(place, split); });
}

static void read(const LinearParams& p, const Task& task, Place place) {
  with_types(task, [&]<class In, class Mul>(Types<In, Mul>) { LinearAttention<In, Mul>(p, task).read(place); });
}

static void query_gradients(const LinearParams& p, const Task& task, Place place, void* share) {
  with_types(task, [&]<class In, class Mul>(Types<In, Mul>) {
    LinearAttention<In, Mul>(p, task).query_gradients(place, static_cast<Acc<In>*>(share));
  });
}

static void key_gradients(const LinearParams& p, const Task& task, Place place, const void* sums) {
  with_types(task, [&]<class In, class Mul>(Types<In, Mul>) {
    LinearAttention<In, Mul>(p, task).key_gradients(place, static_cast<const Acc<In>*>(sums));
  });
}

extern const LinearKernels linear_attention;
const LinearKernels linear_attention{scratch, share, gather, combine, read, query_gradients, key_gradients};

}  // namespace sola::SOLA_ISA
