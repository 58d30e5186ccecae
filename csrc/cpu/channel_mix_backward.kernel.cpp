// channel mix, backward: hidden units are computed again, block by block, and nothing but the inputs and out is kept
//
// With s = sigmoid(R x_r), U = K x_k and H = relu(U)²: dy = dout ⊙ s and dz = dout ⊙ out ⊙ (1 − s) are the gradients
// before and inside the gate, and dU = 2 relu(U) ⊙ Vᵀ dy.

#include "cpu/channel_mix.h"

namespace sola::SOLA_ISA {

template <class In, class Mul>
class ChannelMixBackward {
  using A = Acc<In>;
  static constexpr bool kNative = is_bf16<Mul>;

 public:
  ChannelMixBackward(const ChannelMixParams& p, const Task& task, int64_t rows)
      : p_(p), task_(task), columns_(round_up<A>(p.C)), arena_(task.scratch) {
    const int64_t tiles = tiles_of(rows), C = p.C, widest = C > kUnits ? C : kUnits;
    for (Mul** tile : {&in_, &grad_}) *tile = arena_.take<Mul>(tiles * C * kTile);
    x_rows_ = arena_.take<Mul>(tiles * kTile * columns_);
    grad_y_ = arena_.take<A>(tiles * C * kTile);
    grad_x_ = arena_.take<A>(tiles * C * kTile);
    for (A** tile : {&gate_, &out_}) *tile = arena_.take<A>(C * kTile);
    for (A** block : {&hidden_, &grad_hidden_}) *block = arena_.take<A>((kUnits + 1) * kTile);
    for (Mul** copy : {&left_, &right_}) *copy = kNative ? arena_.take<Mul>((widest + 1) * kTile) : nullptr;
    keys_ = take_weights<Mul, In>(arena_, C * widest);
    values_ = kNative ? nullptr : arena_.take<Mul>(C * kUnits);
    staging_ = arena_.take<A>(kTile * (columns_ > kUnits ? columns_ : kUnits));
  }

  size_t scratch() const { return arena_.used(); }

  void run(int64_t begin, int64_t end, Units units, int64_t share, bool begins, A* partial) {
    const int64_t C = p_.C, M = p_.M, padded = round_up<A>(M), tiles = tiles_of(end - begin);
    A* grad_x = partial ? partial : grad_x_;
    A* grad_key = static_cast<A*>(p_.grad_key) + share * M * columns_;
    A* grad_value = static_cast<A*>(p_.grad_value) + share * C * padded;
    A* grad_receptance = static_cast<A*>(p_.grad_receptance) + share * C * columns_;
    open_gates(begin, end, units.first == 0 ? grad_receptance : nullptr, begins);
    for (int64_t m = units.first; m < units.last; m += kUnits) {
      const int64_t count = units.last - m < kUnits ? units.last - m : kUnits;
      const Left<Mul> keys = weights_block<Mul, In>(p_.key, m * C, C, count, C, keys_);
      const Left<Mul> keys_t = kNative ? weights_block<Mul, In>(p_.key_t, m, M, C, count, keys_) : turned(keys);
      const Left<Mul> values_t = value_block(m, count);
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t tokens = tokens_of(begin + t * kTile, end), width = tile_width<A>(tokens);
        const auto into = [&](bool first) { return first ? Into::overwrite : Into::accumulate; };
        gemm(task_, Product<Mul>{count, width, C, keys, in_ + t * C * kTile, kTile, hidden_, kTile}, Into::overwrite);
        gemm(task_, Product<Mul>{count, width, C, values_t, grad_ + t * C * kTile, kTile, grad_hidden_, kTile},
             Into::overwrite);
        through_squares(count, width);
        const Into sums = into(begins && t == 0);
        add_to_value(grad_y_ + t * C * kTile, count, tokens, grad_value + m, padded, sums);
        add_weights(grad_hidden_, count, x_rows_ + t * kTile * columns_, tokens, grad_key + m * columns_, sums);
        const Mul* grads = as_right(grad_hidden_, count, right_);
        gemm(task_, Product<Mul>{C, width, count, keys_t, grads, kTile, grad_x + t * C * kTile, kTile},
             into(m == units.first));
      }
    }
    if (!partial) finish(begin, end, grad_x, 1, 0);
  }

  // `count` partial gradients, `size` numbers apart
  void finish(int64_t begin, int64_t end, const A* partial, int64_t count, int64_t size) {
    for (int64_t first = begin; first < end; first += kTile, partial += p_.C * kTile) {
      const int64_t tokens = tokens_of(first, end), width = tile_width<A>(tokens);
      const A* total = partial;
      if (count > 1) {
        total = grad_x_;
        for (int64_t i = 0; i < p_.C * kTile; i += kTile) {
          for (int64_t c = i; c < i + width; c += kLanes<A>) {
            Vec<A> sum = load(partial + c);
            for (int64_t n = 1; n < count; ++n) sum += load(partial + n * size + c);
            store(grad_x_ + c, sum);
          }
        }
      }
      store_tile<In>(total, tokens, p_.C, p_.grad_x_k, first, staging_);
    }
  }

 private:
  static int64_t tokens_of(int64_t first, int64_t end) { return end - first < kTile ? end - first : kTile; }

  static Left<Mul> turned(const Left<Mul>& left) { return {left.data, left.column, left.row}; }

  // (count × C): columns of the value, whose rows are too far apart to be read so
  Left<Mul> value_block(int64_t m, int64_t count) {
    if constexpr (kNative) {
      return weights_block<Mul, In>(p_.value_t, m * p_.C, p_.C, count, p_.C, nullptr);
    } else {
      load_rows(static_cast<const In*>(p_.value) + m, p_.M, p_.C, count, values_, count);
      return {values_, 1, count};
    }
  }

  template <class To>
  void load_tile(const Rows& x, int64_t first, int64_t tokens, To* to) {
    pack_columns(row<In>(x, first), x.stride, tokens, p_.C, to, kTile, reinterpret_cast<To*>(staging_));
  }

  void load_x_rows(const Rows& x, int64_t first, int64_t tokens, Mul* to) {
    pack_rows(row<In>(x, first), x.stride, tokens, p_.C, to, columns_);
  }

  // dy, and everything else that hidden units have no part in: dz, the gradient of x_r, and the receptance's unless
  // that is null
  void open_gates(int64_t begin, int64_t end, A* grad_receptance, bool begins) {
    const int64_t C = p_.C;
    const Left<Mul> receptance = weights_block<Mul, In>(p_.receptance, 0, C, C, C, keys_);
    const Left<Mul> transposed =
        kNative ? weights_block<Mul, In>(p_.receptance_t, 0, C, C, C, keys_) : turned(receptance);
    for (int64_t t = 0; t < tiles_of(end - begin); ++t) {
      const int64_t first = begin + t * kTile, tokens = tokens_of(first, end), width = tile_width<A>(tokens);
      Mul* in = in_ + t * C * kTile;
      Mul* rows = x_rows_ + t * kTile * columns_;
      A* grad_y = grad_y_ + t * C * kTile;
      load_tile(p_.x_r, first, tokens, in);
      gemm(task_, Product<Mul>{C, width, C, receptance, in, kTile, gate_, kTile}, Into::overwrite);
      load_tile(p_.grad_out, first, tokens, grad_y);
      if (grad_receptance) {
        load_tile(p_.out, first, tokens, out_);
        through_gate<true>(grad_y, width);
        load_x_rows(p_.x_r, first, tokens, rows);
        add_weights(gate_, C, rows, tokens, grad_receptance, begins && t == 0 ? Into::overwrite : Into::accumulate);
        gemm(task_, Product<Mul>{C, width, C, transposed, as_right(gate_, C, right_), kTile, out_, kTile},
             Into::overwrite);
        store_tile<In>(out_, tokens, C, p_.grad_x_r, first, staging_);
      } else {
        through_gate<false>(grad_y, width);
      }

      load_tile(p_.x_k, first, tokens, in);
      load_x_rows(p_.x_k, first, tokens, rows);
      Mul* grad = grad_ + t * C * kTile;
      if (const Mul* right = as_right(grad_y, C, grad); right != grad)
        std::memcpy(grad, right, C * kTile * sizeof(Mul));
    }
  }

  // grad becomes, from dout, dy; and the gate, if wanted, dz
  template <bool kInside>
  void through_gate(A* grad, int64_t width) {
    for (int64_t i = 0; i < p_.C * kTile; i += kTile) {
      for (int64_t c = i; c < i + width; c += kLanes<A>) {
        const Vec<A> share = sigmoid<A>(load(gate_ + c)), from = load(grad + c);
        if (kInside) store(gate_ + c, from * load(out_ + c) * (A(1) - share));
        store(grad + c, from * share);
      }
    }
  }

  // hidden becomes H, and its gradient dU
  void through_squares(int64_t count, int64_t width) {
    for (int64_t j = 0; j < count * kTile; j += kTile) {
      for (int64_t c = j; c < j + width; c += kLanes<A>) {
        const Vec<A> positive = relu(load(hidden_ + c));
        store(hidden_ + c, positive * positive);
        // an infinite gradient ends at a unit that is off
        const Vec<A> through = load(grad_hidden_ + c) * (positive + positive);
        store(grad_hidden_ + c, positive == Vec<A>{} ? Vec<A>{} : through);
      }
    }
  }

  // a tile of sums, (rows × tokens), as a left operand
  Left<Mul> as_left(const A* tile, int64_t rows, int64_t tokens) {
    if constexpr (!kNative) {
      return {tile, kTile, 1};
    } else {
      for (int64_t i = 0; i < rows; ++i) convert_row(tile + i * kTile, tokens, left_ + i * kTile, kTile);
      return {left_, kTile, 1};
    }
  }

  // sums (count × columns) += tile (count × tokens) · rows (tokens × columns)
  void add_weights(const A* tile, int64_t count, const Mul* rows, int64_t tokens, A* sums, Into into) {
    gemm(task_, Product<Mul>{count, columns_, tokens, as_left(tile, count, tokens), rows, columns_, sums, columns_},
         into);
  }

  // sums (C × count of a row of `padded`) += grad (C × tokens) · Hᵀ
  void add_to_value(const A* grad, int64_t count, int64_t tokens, A* sums, int64_t padded, Into into) {
    const int64_t wide = round_up<A>(count);
    transpose_rows(hidden_, kTile, count, tokens, staging_, wide);
    for (int64_t r = 0; r < tokens; ++r) fill(staging_ + r * wide + count, wide - count, A(0));
    const Left<Mul> left = as_left(grad, p_.C, tokens);
    const Mul* right;
    if constexpr (kNative) {
      pack_pairs(staging_, wide, tokens, wide, right_);
      right = right_;
    } else {
      right = staging_;
    }
    gemm(task_, Product<Mul>{p_.C, wide, tokens, left, right, wide, sums, padded}, into);
  }

  const ChannelMixParams& p_;
  const Task& task_;
  int64_t columns_;
  Arena arena_;
  Mul *in_, *grad_, *x_rows_, *left_, *right_, *keys_, *values_;
  A *grad_y_, *grad_x_, *gate_, *out_, *hidden_, *grad_hidden_, *staging_;
};

static size_t scratch(const ChannelMixParams& p, const Task& task, int64_t rows) {
  return with_types(
      task, [&]<class In, class Mul>(Types<In, Mul>) { return ChannelMixBackward<In, Mul>(p, task, rows).scratch(); });
}

static int64_t padded(const Task& task, int64_t columns) {
  return with_input(task, [&]<class In>(In) { return round_up<Acc<In>>(columns); });
}

static void run(const ChannelMixParams& p, const Task& task, Place place, Units units, int64_t share, bool begins,
                void* partial) {
  with_types(task, [&]<class In, class Mul>(Types<In, Mul>) {
    ChannelMixBackward<In, Mul>(p, task, place.end - place.begin)
        .run(place.begin, place.end, units, share, begins, static_cast<Acc<In>*>(partial));
  });
}

static void finish(const ChannelMixParams& p, const Task& task, Place place, const void* partial, int64_t count,
                   int64_t size) {
  with_types(task, [&]<class In, class Mul>(Types<In, Mul>) {
    ChannelMixBackward<In, Mul>(p, task, kTile)
        .finish(place.begin, place.end, static_cast<const Acc<In>*>(partial), count, size);
  });
}

static void turn(const void* from, int64_t rows, int64_t columns, int64_t first, int64_t last, void* to) {
  transpose_rows(static_cast<const bf16*>(from) + first, columns, rows, last - first,
                 static_cast<bf16*>(to) + first * rows, rows);
}

extern const ChannelMixBackwardKernels channel_mix_backward;
const ChannelMixBackwardKernels channel_mix_backward{scratch, padded, turn, run, finish};

}  // namespace sola::SOLA_ISA
