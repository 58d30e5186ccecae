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

struct Place {
  int64_t head, batch, begin, end;
};

SOLA_DEVICE Place place_of(const ReadParams& p) {
  const int64_t range = blockIdx.x % p.ranges, head = blockIdx.x / p.ranges, begin = range * p.per_range;
  return {head, head / p.heads, begin, min(begin + p.per_range, p.tokens)};
}

// the 64 rows from token `first` on, and the warp's 16 of them; none beyond the range
template <class T>
SOLA_DEVICE Rows<T> tile_rows(const ReadParams& p, const View& view, const Place& at, int64_t first, int64_t columns) {
  return {row_of<T>(view, at.batch, first, at.head % p.heads), view.token, int(min(int64_t(kTile), at.end - first)),
          int(columns)};
}
template <class T>
SOLA_DEVICE Rows<T> warp_rows(const ReadParams& p, const View& view, const Place& at, int64_t first, int64_t columns) {
  const Rows<T> tile = tile_rows<T>(p, view, at, first, columns);
  const int own = kWarpRows * warp_of();
  return {tile.data + own * tile.stride, tile.stride, tile.rows - own, tile.columns};
}

template <class In, int T>
SOLA_DEVICE void load_state(const ReadParams& p, const Place& at, const StateMemory<In, T>& memory) {
  memory.load(p.state + at.head * p.D * p.V, p.companion ? p.companion + at.head * p.D : nullptr, int(p.D), int(p.V));
}

template <class In, int T>
__global__ void __launch_bounds__(kThreads, resident_reads(T, false)) read_values(ReadParams p) {
  using Mul = typename WideRange<In>::Mul;
  const StateMemory<In, T> memory{shared_memory()};
  const Place at = place_of(p);
  RawRows<In, T> x;
  x.load(warp_rows<const In>(p, p.x, at, at.begin, p.D));
  load_state(p, at, memory);
  sync_block();
  for (int64_t first = at.begin; first < at.end; first += kTile) {
    LeftRows<Mul, T> left(memory.scratch());
    float denominators[2] = {0.0f, 0.0f};
    for_neighbours<T>([&](int, int, int half, int group) {
      float phi[8], z[8];
      x.neighbours(half, group, phi);
      map_features<is_half<In>>(p.map, phi);
      left.set(phi, half, group);
      memory.companions(group, z);
#pragma unroll
      for (int j = 0; j < 8; ++j) denominators[half] = fmaf(rounded<Mul>(phi[j]), z[j], denominators[half]);
    });
    if (first + kTile < at.end) x.load(warp_rows<const In>(p, p.x, at, first + kTile, p.D));
    float sums[1][T / 8][4];
    clear(sums);
    multiply_rows<Along::other>(sums, left, memory.state());
    if (p.companion) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float inverse = reciprocal(quad_sum(denominators[half]) + p.eps);
#pragma unroll
        for (int n = 0; n < T / 8; ++n) {
          sums[0][n][2 * half] *= inverse;
          sums[0][n][2 * half + 1] *= inverse;
        }
      }
    }
    store_rows(sums, warp_rows<In>(p, p.out, at, first, p.V));
  }
}

// of a warp's rows: the inverse of the normaliser and the gradient of the normaliser
struct Normalisers {
  float r[2], dd[2];
};

template <class In, int T>
SOLA_DEVICE Normalisers normalisers(const ReadParams& p, const StateMemory<In, T>& memory, int rows,
                                    const Sums<1, T / 8>& phi, const Sums<1, T / 8>& grad) {
  Normalisers it;
  float along_z[2] = {0.0f, 0.0f}, along_g[2] = {0.0f, 0.0f};
  for_neighbours<T>([&](int, int, int half, int group) {
    float x[8], g[8], z[8];
    take(phi, half, group, x);
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
    const bool exists = lane_of() / 4 + 8 * half < rows;
    it.r[half] = exists ? r : 0.0f;
    it.dd[half] = exists ? dd : 0.0f;
  }
  return it;
}

// g to dφ(q) to dq
template <class In, int T>
SOLA_DEVICE void store_gradients(const ReadParams& p, const StateMemory<In, T>& memory, const Normalisers& by,
                                 const Sums<1, T / 8>& phi, const Sums<1, T / 8>& grad, Rows<In> to) {
  const bool vectorial = is_vectorial(to.data, to.stride, to.columns);
  for_neighbours<T>([&](int row, int column, int half, int group) {
    float x[8], g[8], z[8];
    take(phi, half, group, x);
    take(grad, half, group, g);
    memory.companions(group, z);
#pragma unroll
    for (int j = 0; j < 8; ++j) g[j] = fmaf(by.r[half], g[j], by.dd[half] * z[j]);
    multiply_slopes(p.map, x, g);
    store_neighbours(g, to, row, column, vectorial);
  });
}

template <class In, int T>
using QueryTiles = StepTiles<typename WideRange<In>::Mul, T, kTile>;

// φ(q), r dO and dd of a warp's rows, as a step of the sums over tokens
template <class In, int T>
SOLA_DEVICE void store_step(const QueryTiles<In, T>& tiles, const Normalisers& by, const Sums<1, T / 8>& phi,
                            const RawRows<In, T>& grad) {
  constexpr int stride = QueryTiles<In, T>::kStride;
  for_neighbours<T>([&](int row, int column, int half, int group) {
    const int place = (kWarpRows * warp_of() + row) * stride + column;
    float x[8], y[8];
    take(phi, half, group, x);
    grad.neighbours(half, group, y);
#pragma unroll
    for (int j = 0; j < 8; ++j) y[j] *= by.r[half];
    store_vector(x, tiles.x + place);
    store_vector(y, tiles.y() + place);
    if (column == 0) tiles.u()[kWarpRows * warp_of() + row] = by.dd[half];
  });
}

// the same for a gather that follows
SOLA_DEVICE void store_normalisers(const ReadParams& p, const Place& at, int64_t first, const Normalisers& by) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t token = first + kWarpRows * warp_of() + lane_of() / 4 + 8 * half;
    if (!p.companion || lane_of() % 4 != 0 || token >= at.end) continue;
    p.inverse[at.head * p.tokens + token] = by.r[half];
    p.grad_denominator[at.head * p.tokens + token] = by.dd[half];
  }
}

// dq of the warp's rows of a tile, where dO·Sᵀ and what of φ(q) belongs to it are left in registers
template <class In, int T>
SOLA_DEVICE Normalisers query_rows(const ReadParams& p, const StateMemory<In, T>& memory, const RawRows<In, T>& q,
                                   const RawRows<In, T>& grad, Sums<1, T / 8>& phi, Rows<In> to) {
  LeftRows<typename WideRange<In>::Mul, T> left(memory.scratch());
  left.set(grad);
  float sums[1][T / 8][4];
  clear(sums);
  multiply_rows<Along::depth>(sums, left, memory.state());
  for_neighbours<T>([&](int, int, int half, int group) {
    float x[8];
    q.neighbours(half, group, x);
    map_features<is_half<In>>(p.map, x);
    put(x, half, group, phi);
  });
  Normalisers by{{1.0f, 1.0f}, {0.0f, 0.0f}};
  if (p.companion) by = normalisers(p, memory, to.rows, phi, sums);
  store_gradients(p, memory, by, phi, sums, to);
  return by;
}

template <class In, int T>
__global__ void __launch_bounds__(kThreads, resident_reads(T, true)) query_gradients(ReadParams p) {
  using Mul = typename WideRange<In>::Mul;
  constexpr bool kSums = sums_beside_gradients(T, T);
  const StateMemory<In, T> memory{shared_memory()};
  const Place at = place_of(p);
  RawRows<In, T> q, grad;
  const auto load = [&](int64_t first) {
    grad.load(warp_rows<const In>(p, p.x, at, first, p.V));
    q.load(warp_rows<const In>(p, p.phi, at, first, p.D));
  };
  load(at.begin);
  load_state(p, at, memory);
  sync_block();
  StateSums<Mul, T, kThreads / kWarp> state;
  for (int64_t first = at.begin; first < at.end; first += kTile) {
    const int64_t next = first + kTile;
    if (next < at.end) {
      prefetch_rows<T, kThreads>(tile_rows<const In>(p, p.x, at, next, p.V));
      prefetch_rows<T, kThreads>(tile_rows<const In>(p, p.phi, at, next, p.D));
    }
    float phi[1][T / 8][4];
    const Normalisers by = query_rows(p, memory, q, grad, phi, warp_rows<In>(p, p.out, at, first, p.D));
    if constexpr (kSums) {
      const QueryTiles<In, T> tiles(shared_memory() + StateMemory<In, T>::kBytes, (first - at.begin) / kTile);
      if (tiles.kBuffers == 1) sync_block();
      store_step(tiles, by, phi, grad);
      if (next < at.end) load(next);
      sync_block();
      state.add(tiles);
    } else {
      store_normalisers(p, at, first, by);
      if (next < at.end) load(next);
    }
  }
  if constexpr (kSums) {
    sync_block();
    state.write(p.sums + int64_t(blockIdx.x) * (p.D * p.V + p.D), p.D, p.V, 0, 0,
                reinterpret_cast<float*>(shared_memory() + StateMemory<In, T>::kBytes));
  }
}

template <class In, int T>
__global__ void __launch_bounds__(kThreads, resident_reads(T, true)) key_gradients(ReadParams p) {
  using Mul = typename WideRange<In>::Mul;
  const StateMemory<In, T> memory{shared_memory()};
  const Place at = place_of(p);
  RawRows<In, T> k, v;
  v.load(warp_rows<const In>(p, p.x, at, at.begin, p.V));
  k.load(warp_rows<const In>(p, p.phi, at, at.begin, p.D));
  load_state(p, at, memory);
  sync_block();
  for (int64_t first = at.begin; first < at.end; first += kTile) {
    const bool more = first + kTile < at.end;
    LeftRows<Mul, T> left(memory.scratch());
    left.set(v);
    if (more) v.load(warp_rows<const In>(p, p.x, at, first + kTile, p.V));
    float sums[1][T / 8][4];
    clear(sums);
    multiply_rows<Along::depth>(sums, left, memory.state());
    const Rows<In> to = warp_rows<In>(p, p.out, at, first, p.D);
    const bool vectorial = is_vectorial(to.data, to.stride, to.columns);
    for_neighbours<T>([&](int row, int column, int half, int group) {
      float phi[8], g[8], z[8];
      k.neighbours(half, group, phi);
      map_features<is_half<In>>(p.map, phi);
      take(sums, half, group, g);
      memory.companions(group, z);
#pragma unroll
      for (int j = 0; j < 8; ++j) g[j] += z[j];
      multiply_slopes(p.map, phi, g);
      store_neighbours(g, to, row, column, vectorial);
      left.set(phi, half, group);
    });
    if (more) k.load(warp_rows<const In>(p, p.phi, at, first + kTile, p.D));
    clear(sums);
    multiply_rows<Along::other>(sums, left, memory.state());
    store_rows(sums, warp_rows<In>(p, p.second, at, first, p.V));
  }
}

template <class In, int T>
int start(const ReadParams& p, Read kind, void* stream) {
  const auto kernel = kind == Read::values            ? read_values<In, T>
                      : kind == Read::query_gradients ? query_gradients<In, T>
                                                      : key_gradients<In, T>;
  size_t bytes = StateMemory<In, T>::kBytes;
  if (kind == Read::query_gradients && sums_beside_gradients(T, T))
    bytes += QueryTiles<In, T>::kBuffers * QueryTiles<In, T>::kBytes;
  return launch(kernel, p.batches * p.heads * p.ranges, kThreads, bytes, stream, p);
}

}  // namespace

int launch_read(const ReadParams& p, Read kind, Dtype dtype, void* stream) {
  if (!fits_shared(p.D, p.V)) return launch_wide_read(p, kind, dtype, stream);
  return with_input(dtype, [&](auto in) {
    return with_width<32, 64, 128>(p.D > p.V ? p.D : p.V, [&](auto width) {
      return start<decltype(in), decltype(width)::value>(p, kind, stream);
    });
  });
}

}  // namespace sola::cuda
