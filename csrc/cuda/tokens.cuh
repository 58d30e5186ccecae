// ranges of the tokens of one head
#pragma once

#include "cuda/tile.cuh"

namespace sola::cuda {

template <class In>
constexpr Dtype kDtype = !is_half<In>               ? Dtype::f32
                         : std::is_same_v<In, Bf16> ? Dtype::bf16
                                                    : Dtype::f16;

// the tokens of a head that a block owns; they are counted from the first of them on
struct TokenRange {
  int64_t head, batch, begin, tokens;
};

// range `index` of those that cut all heads into `ranges` each
template <class Params>
SOLA_DEVICE TokenRange range_of(const Params& p, int64_t index) {
  const int64_t head = index / p.ranges, begin = index % p.ranges * p.per_range;
  return {head, head / p.heads, begin, max(int64_t(0), min(p.per_range, p.tokens - begin))};
}

// f(true_type) or f(false_type)
template <class F>
SOLA_DEVICE void with_bool(bool which, const F& f) {
  if (which) {
    f(std::true_type{});
  } else {
    f(std::false_type{});
  }
}

// their rows, or some columns of them
template <class T>
struct HeadRows {
  T* data;
  int64_t stride, tokens;
  int columns;
  // whether 16 bytes can be moved at a time: the same for all threads, so that branches by it are cheap
  bool vectorial;

  SOLA_DEVICE HeadRows(const View& view, const TokenRange& at, int64_t heads, int64_t first_column, int64_t columns)
      : data(row_of<T>(view, at.batch, at.begin, at.head % heads) + first_column),
        stride(view.token),
        tokens(at.tokens),
        columns(int(columns)),
        vectorial(is_vectorial(data, stride, this->columns)) {}

  SOLA_DEVICE T* at(int64_t token) const { return data + token * stride; }

  template <class F>
  SOLA_DEVICE void with_vectorial(const F& f) const {
    with_bool(vectorial, f);
  }
};

}  // namespace sola::cuda
