// what queries and keys read from one global state: outputs, and all gradients
//
//   values            out = φ(q) S / (φ(q)·z + eps), or without the quotient
//   query gradients   g = dO Sᵀ, r = 1/(φ(q)·z + eps), dd = −r² φ(q)·g:   dφ(q) = r g + dd z
//                     and dS = Σ φ(q)ᵀ r dO, dz = Σ dd φ(q) of the block's tokens
//   key gradients     dφ(k) = v dSᵀ + dz, dv = φ(k) dS
//
// A block owns a range of tokens of one head, and keeps the state in shared memory. Its warps walk 16 rows at a time,
// with the next rows on their way; no tensor is read twice.

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/rows.cuh"
#include "cuda/state_sums.cuh"

namespace sola::cuda {
namespace {

template <int T>
constexpr bool kSums = sums_beside_gradients(T, T);
template <class In, int T>
using QueryTiles = StepTiles<typename WideRange<In>::Mul, T, kTile>;

template <class In, int T>
SOLA_DEVICE StateMemory<In, T> load_state(const ReadParams& p, const TokenRange& at) {
  const StateMemory<In, T> memory{shared_memory()};
  memory.load(p.state + at.head * p.D * p.V, p.companion ? p.companion + at.head * p.D : nullptr, int(p.D), int(p.V));
  sync_block();
  return memory;
}

// the first of the warp's 16 rows, of the 64 from `first` on
SOLA_DEVICE int64_t own_rows(int64_t first) { return first + kWarpRows * warp_of(); }

// lets the warp's rows of two tensors start on their way to the L2 cache: registers that they go to are still in use
template <int T, class In>
SOLA_DEVICE void prefetch_two(const HeadRows<const In>& a, const HeadRows<const In>& b, int64_t first, int64_t end) {
  static_assert(2 * kWarpRows == kWarp);
  constexpr int kLine = 128 / int(sizeof(In));
  const int64_t token = first + lane_of() % kWarpRows;
  const bool second = lane_of() >= kWarpRows;
  if (token >= end) return;
  const In* row = second ? b.at(token) : a.at(token);
#pragma unroll
  for (int column = 0; column < T; column += kLine) {
    if (column < (second ? b.columns : a.columns)) prefetch(row + column);
  }
}

template <class In, int T>
__global__ void __launch_bounds__(kThreads, resident_reads(kDtype<In>, T, false)) read_values(ReadParams p) {
  using Mul = typename WideRange<In>::Mul;
  const TokenRange at = range_of(p, blockIdx.x);
  const HeadRows<const In> q(p.x, at, p.heads, 0, p.D);
  const HeadRows<In> out(p.out, at, p.heads, 0, p.V);
  RawRows<In, T> rows;
  rows.load(q, own_rows(at.begin), at.end);
  const auto memory = load_state<In, T>(p, at);
  for (int64_t first = own_rows(at.begin); first < at.end; first += kTile) {
    LeftRows<Mul, T> left(memory.scratch());
    float inverse[2] = {0.0f, 0.0f};
    for_neighbours<T>([&](int, int, int half, int group) {
      float x[8], z[8];
      rows.neighbours(half, group, x);
      map_features<is_half<In>>(p.map, x);
      left.set(x, half, group);
      memory.companions(group, z);
#pragma unroll
      for (int j = 0; j < 8; ++j) inverse[half] = fmaf(x[j], z[j], inverse[half]);
    });
#pragma unroll
    for (int half = 0; half < 2; ++half)
      inverse[half] = p.companion ? reciprocal(quad_sum(inverse[half]) + p.eps) : 1.0f;
    if (first + kTile < at.end) rows.load(q, first + kTile, at.end);
    multiply_parts<Along::other>(left, memory.state(), [&](const auto& sums, int part) {
      store_rows<kPart<Mul, T>>(out, first, at.end, 32 * part, [&](int half, int group, float (&x)[8]) {
        take(sums, half, group, x);
#pragma unroll
        for (int j = 0; j < 8; ++j) x[j] *= inverse[half];
      });
    });
  }
}

// φ of 16 rows: kept where it is used three times, otherwise mapped at each of two uses
template <class In, int T>
struct Mapped {
  const RawRows<In, T>& rows;
  FeatureMap map;
  float kept[1][kSums<T> ? T / 8 : 1][4];

  SOLA_DEVICE Mapped(const RawRows<In, T>& from, FeatureMap by) : rows(from), map(by) {
    if constexpr (kSums<T>) {
      for_neighbours<T>([&](int, int, int half, int group) {
        float x[8];
        compute(half, group, x);
        put(x, half, group, kept);
      });
    }
  }

  SOLA_DEVICE void compute(int half, int group, float (&x)[8]) const {
    rows.neighbours(half, group, x);
    map_features<is_half<In>>(map, x);
  }

  SOLA_DEVICE void neighbours(int half, int group, float (&x)[8]) const {
    if constexpr (kSums<T>) {
      take(kept, half, group, x);
    } else {
      compute(half, group, x);
    }
  }
};

// of the warp's rows: the inverse of the normaliser and the gradient of the normaliser
struct Normalisers {
  float r[2], dd[2];
};

template <class In, int T>
SOLA_DEVICE Normalisers normalisers(const ReadParams& p, const StateMemory<In, T>& memory, int64_t first, int64_t end,
                                    const Mapped<In, T>& phi, const Sums<1, T / 8>& grad) {
  if (!p.companion) return {{1.0f, 1.0f}, {0.0f, 0.0f}};
  Normalisers it;
  float along_z[2] = {0.0f, 0.0f}, along_g[2] = {0.0f, 0.0f};
  for_neighbours<T>([&](int, int, int half, int group) {
    float x[8], g[8], z[8];
    phi.neighbours(half, group, x);
    take(grad, half, group, g);
    memory.companions(group, z);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      along_z[half] = fmaf(x[j], z[j], along_z[half]);
      along_g[half] = fmaf(x[j], g[j], along_g[half]);
    }
  });
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float r = reciprocal(quad_sum(along_z[half]) + p.eps), dd = -r * r * quad_sum(along_g[half]);
    // rows that don't exist have no say in the sums
    const bool exists = first + lane_of() / 4 + 8 * half < end;
    it.r[half] = exists ? r : 0.0f;
    it.dd[half] = exists ? dd : 0.0f;
  }
  return it;
}

// φ(q), r dO and dd of the warp's rows, as a step of the sums over tokens
template <class In, int T>
SOLA_DEVICE void store_step(const QueryTiles<In, T>& tiles, const Normalisers& by, const Mapped<In, T>& phi,
                            const RawRows<In, T>& grad) {
  constexpr int stride = QueryTiles<In, T>::kStride;
  const int first = kWarpRows * warp_of();
  for_neighbours<T>([&](int row, int column, int half, int group) {
    float x[8], y[8];
    phi.neighbours(half, group, x);
    grad.neighbours(half, group, y);
#pragma unroll
    for (int j = 0; j < 8; ++j) y[j] *= by.r[half];
    store_vector(x, tiles.x + (first + row) * stride + column);
    store_vector(y, tiles.y() + (first + row) * stride + column);
    if (column == 0) tiles.u()[first + row] = by.dd[half];
  });
}

// the same for a gather that follows
SOLA_DEVICE void store_normalisers(const ReadParams& p, const TokenRange& at, int64_t first, const Normalisers& by) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t token = first + lane_of() / 4 + 8 * half;
    if (!p.companion || lane_of() % 4 != 0 || token >= at.end) continue;
    p.inverse[at.head * p.tokens + token] = by.r[half];
    p.grad_denominator[at.head * p.tokens + token] = by.dd[half];
  }
}

// dq of the warp's rows
template <class In, int T>
SOLA_DEVICE Normalisers query_rows(const ReadParams& p, const StateMemory<In, T>& memory, int64_t first, int64_t end,
                                   const RawRows<In, T>& grad, const Mapped<In, T>& phi, const HeadRows<In>& to) {
  LeftRows<typename WideRange<In>::Mul, T> left(memory.scratch());
  left.set(grad);
  float sums[1][T / 8][4];
  clear(sums);
  multiply_rows<Along::depth>(sums, left, memory.state());
  const Normalisers by = normalisers(p, memory, first, end, phi, sums);
  store_rows<T>(to, first, end, 0, [&](int half, int group, float (&g)[8]) {
    float x[8], z[8];
    phi.neighbours(half, group, x);
    take(sums, half, group, g);
    memory.companions(group, z);
#pragma unroll
    for (int j = 0; j < 8; ++j) g[j] = fmaf(by.r[half], g[j], by.dd[half] * z[j]);
    multiply_slopes(p.map, x, g);
  });
  return by;
}

template <class In, int T>
__global__ void __launch_bounds__(kThreads, resident_reads(kDtype<In>, T, true)) query_gradients(ReadParams p) {
  const TokenRange at = range_of(p, blockIdx.x);
  const HeadRows<const In> grad_out(p.x, at, p.heads, 0, p.V), q(p.phi, at, p.heads, 0, p.D);
  const HeadRows<In> grad_q(p.out, at, p.heads, 0, p.D);
  RawRows<In, T> grad, rows;
  const auto load = [&](int64_t first) {
    grad.load(grad_out, own_rows(first), at.end);
    rows.load(q, own_rows(first), at.end);
  };
  load(at.begin);
  const auto memory = load_state<In, T>(p, at);
  unsigned char* const rest = shared_memory() + StateMemory<In, T>::kBytes;
  StateSums<typename WideRange<In>::Mul, T, kThreads / kWarp> state;
  for (int64_t first = at.begin; first < at.end; first += kTile) {
    const int64_t next = first + kTile;
    prefetch_two<T>(grad_out, q, own_rows(next), at.end);
    const Mapped<In, T> phi(rows, p.map);
    const Normalisers by = query_rows(p, memory, own_rows(first), at.end, grad, phi, grad_q);
    const QueryTiles<In, T> tiles(rest, (first - at.begin) / kTile);
    if constexpr (kSums<T>) {
      if (tiles.kBuffers == 1) sync_block();
      store_step(tiles, by, phi, grad);
      sync_block();
    } else {
      store_normalisers(p, at, own_rows(first), by);
    }
    if (next < at.end) load(next);
    if constexpr (kSums<T>) state.add(tiles);
  }
  if constexpr (kSums<T>) {
    sync_block();
    state.write(p.sums + int64_t(blockIdx.x) * (p.D * p.V + p.D), p.D, p.V, 0, 0, reinterpret_cast<float*>(rest));
  }
}

template <class In, int T>
__global__ void __launch_bounds__(kThreads, resident_reads(kDtype<In>, T, true)) key_gradients(ReadParams p) {
  using Mul = typename WideRange<In>::Mul;
  const TokenRange at = range_of(p, blockIdx.x);
  const HeadRows<const In> v(p.x, at, p.heads, 0, p.V), k(p.phi, at, p.heads, 0, p.D);
  const HeadRows<In> grad_k(p.out, at, p.heads, 0, p.D), grad_v(p.second, at, p.heads, 0, p.V);
  RawRows<In, T> values, keys;
  const auto load = [&](int64_t first) {
    values.load(v, first, at.end);
    keys.load(k, first, at.end);
  };
  load(own_rows(at.begin));
  const auto memory = load_state<In, T>(p, at);
  for (int64_t first = own_rows(at.begin); first < at.end; first += kTile) {
    const int64_t next = first + kTile;
    prefetch_two<T>(v, k, next, at.end);
    LeftRows<Mul, T> left(memory.scratch()), mapped(memory.scratch());
    left.set(values);
    multiply_parts<Along::depth>(left, memory.state(), [&](const auto& sums, int part) {
      store_rows<kPart<Mul, T>>(grad_k, first, at.end, 32 * part, [&](int half, int group, float (&g)[8]) {
        float x[8], z[8];
        keys.neighbours(half, part + group, x);
        map_features<is_half<In>>(p.map, x);
        take(sums, half, group, g);
        memory.companions(part + group, z);
#pragma unroll
        for (int j = 0; j < 8; ++j) g[j] += z[j];
        multiply_slopes(p.map, x, g);
        mapped.set(x, half, part + group);
      });
    });
    if (next < at.end) load(next);
    multiply_parts<Along::other>(mapped, memory.state(), [&](const auto& sums, int part) {
      store_rows<kPart<Mul, T>>(grad_v, first, at.end, 32 * part,
                                [&](int half, int group, float (&x)[8]) { take(sums, half, group, x); });
    });
  }
}

template <class In, int T>
int start(const ReadParams& p, Read kind, void* stream) {
  const auto kernel = kind == Read::values            ? read_values<In, T>
                      : kind == Read::query_gradients ? query_gradients<In, T>
                                                      : key_gradients<In, T>;
  size_t bytes = StateMemory<In, T>::kBytes;
  if (kind == Read::query_gradients && kSums<T>) bytes += QueryTiles<In, T>::kBuffers * QueryTiles<In, T>::kBytes;
  return launch(kernel, p.batches * p.heads * p.ranges, kThreads, bytes, stream, p);
}

}  // namespace

int launch_read(const ReadParams& p, Read kind, Dtype dtype, void* stream) {
  if (!fits_shared(dtype, p.D, p.V)) return launch_wide_read(p, kind, dtype, stream);
  return with_input(dtype, [&](auto in) {
    using In = decltype(in);
    return with_width<32, 64, fits_shared(kDtype<In>, 128, 128) ? 128 : 64>(
        p.D > p.V ? p.D : p.V, [&](auto width) { return start<In, decltype(width)::value>(p, kind, stream); });
  });
}

}  // namespace sola::cuda
