// the walks of queries and keys that read one global state, for kernels that do so: outputs, and all gradients
//
//   values            out = φ(q) S / (φ(q)·z + eps), or without the quotient
//   query gradients   g = dO Sᵀ, r = 1/(φ(q)·z + eps), dd = −r² φ(q)·g:   dφ(q) = r g + dd z
//                     and dS = Σ φ(q)ᵀ r dO, dz = Σ dd φ(q) of the block's tokens
//   key gradients     dφ(k) = v dSᵀ + dz, dv = φ(k) dS
//
// A block owns a range of tokens of one head, and keeps the state in shared memory. Its warps walk 16 rows at a time,
// with the next rows on their way.
#pragma once

#include "cuda/rows.cuh"
#include "cuda/state_sums.cuh"

namespace sola::cuda {

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

// lets the warp's rows start on their way, while the registers that they go to are still in use
template <int T, class In>
SOLA_DEVICE void prefetch_own(const HeadRows<const In>& from, int64_t first) {
  const int rows = int(max(int64_t(0), min(int64_t(kWarpRows), from.tokens - first)));
  prefetch_rows<T, kWarp>(Rows<const In>{from.at(first), from.stride, rows, from.columns});
}

// Each walk has its first rows on their way once it exists, so that they need not wait for the state.
template <class In, int T>
struct Values {
  const ReadParams& p;
  const TokenRange at;
  const HeadRows<const In> q;
  const HeadRows<In> out;
  RawRows<In, T> rows;

  SOLA_DEVICE Values(const ReadParams& params, const TokenRange& range)
      : p(params), at(range), q(p.x, at, p.heads, 0, p.D), out(p.out, at, p.heads, 0, p.V) {
    rows.load(q, own_rows(0));
  }

  SOLA_DEVICE void walk(const StateMemory<In, T>& memory) {
    using Mul = typename WideRange<In>::Mul;
    if constexpr (is_rounded<Mul>) {
      if (p.companion) memory.spread_companion();
    }
    for (int64_t first = own_rows(0); first < at.tokens; first += kTile) {
      LeftRows<Mul, T> left(memory.scratch());
      float inverse[2] = {0.0f, 0.0f};
      for_neighbours<T>([&](int half, int group) {
        float x[8];
        rows.neighbours(half, group, x);
        Features<is_half<In>>{p.map}(0, x);
        left.set(x, half, group);
        if constexpr (!is_rounded<Mul>) {
          float z[8];
          memory.companions(group, z);
#pragma unroll
          for (int j = 0; j < 8; ++j) inverse[half] = fmaf(x[j], z[j], inverse[half]);
        }
      });
      if constexpr (is_rounded<Mul>) {
        if (p.companion) memory.multiply_companion(left, inverse);
      } else {
#pragma unroll
        for (int half = 0; half < 2; ++half) inverse[half] = quad_sum(inverse[half]);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) inverse[half] = p.companion ? reciprocal(inverse[half] + p.eps) : 1.0f;
      if (first + kTile < at.tokens) rows.load(q, first + kTile);
      multiply_parts<Along::other>(left, memory.state(), [&](const auto& sums, int part) {
        store_rows<kPart<T>>(out, first, 32 * part, [&](int half, int group, float (&x)[8]) {
          take(sums, half, group, x);
#pragma unroll
          for (int j = 0; j < 8; ++j) x[j] *= inverse[half];
        });
      });
    }
  }
};

// a lane's neighbours in one of its rows
template <int T>
using Row = float[T / 32][8];

// of one row: r and −r φ(q)·g, whose product is dd
struct Normaliser {
  float r, u;
};

template <class In, int T>
SOLA_DEVICE Normaliser normaliser(const ReadParams& p, const StateMemory<In, T>& memory, bool exists, const Row<T>& phi,
                                  const Row<T>& grad) {
  if (!p.companion) return {1.0f, 0.0f};
  float along_z = 0.0f, along_g = 0.0f;
#pragma unroll
  for (int group = 0; group < T / 32; ++group) {
    float z[8];
    memory.companions(group, z);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      along_z = fmaf(phi[group][j], z[j], along_z);
      along_g = fmaf(phi[group][j], grad[group][j], along_g);
    }
  }
  const float r = reciprocal(quad_sum(along_z) + p.eps), u = -r * quad_sum(along_g);
  // rows that don't exist have no say in the sums
  return {exists ? r : 0.0f, exists ? u : 0.0f};
}

// Where a lane's row lies in a step: the order of tokens is free, and with this one eight lanes that store 16 bytes of
// two rows touch all banks.
SOLA_DEVICE int step_row(int half) {
  const int g = neighbour_row(0);
  return int(own_rows(g / 2 + g % 2 * 4 + 8 * half));
}

// dO of the warp's rows: as it is, since dS = Σ (r φ(q))ᵀ dO
template <class In, int T>
SOLA_DEVICE void store_grad(const QueryTiles<In, T>& tiles, const RawRows<In, T>& grad) {
  for_neighbours<T>([&](int half, int group) {
    auto* to = tiles.y() + step_row(half) * tiles.kStride + neighbour_column(group);
    if constexpr (is_half<typename WideRange<In>::Mul>) {
      store_vec4(to, grad.raw[half][group][0]);
    } else {
      float y[8];
      grad.neighbours(half, group, y);
      store_vector(y, to);
    }
  });
}

// r φ(q) of one of the lane's rows, and u, since dz = Σ u (r φ(q))
template <class In, int T>
SOLA_DEVICE void store_query(const QueryTiles<In, T>& tiles, const Normaliser& by, int half, Row<T>& phi) {
  const int row = step_row(half);
#pragma unroll
  for (int group = 0; group < T / 32; ++group) {
#pragma unroll
    for (int j = 0; j < 8; ++j) phi[group][j] *= by.r;
    store_vector(phi[group], tiles.x + row * tiles.kStride + neighbour_column(group));
  }
  if (neighbour_column(0) == 0) tiles.store_u(row, by.u);
}

// r and dd for a gather that follows
SOLA_DEVICE void store_normaliser(const ReadParams& p, const TokenRange& at, int64_t token, const Normaliser& by) {
  if (!p.companion || neighbour_column(0) != 0 || token >= at.tokens) return;
  const int64_t place = at.head * p.tokens + at.begin + token;
  p.inverse[place] = by.r;
  p.grad_denominator[place] = by.r * by.u;
}

// dφ(q) = r (g + u z) of a lane's row, times φ′
template <class In, int T>
SOLA_DEVICE void store_gradient(const ReadParams& p, const StateMemory<In, T>& memory, const Normaliser& by,
                                const Row<T>& phi, Row<T>& grad, const HeadRows<In>& to, int64_t token) {
#pragma unroll
  for (int group = 0; group < T / 32; ++group) {
    float z[8];
    memory.companions(group, z);
#pragma unroll
    for (int j = 0; j < 8; ++j) grad[group][j] = by.r * fmaf(by.u, z[j], grad[group][j]);
    multiply_slopes(p.map, phi[group], grad[group]);
    store_eight(grad[group], to.at(token) + neighbour_column(group),
                token < to.tokens ? to.columns - neighbour_column(group) : 0, to.vectorial);
  }
}

template <class In, int T>
using QuerySums = StateSums<typename WideRange<In>::Mul, T, kThreads / kWarp>;

template <class In, int T>
struct QueryGradients {
  const ReadParams& p;
  const TokenRange at;
  const HeadRows<const In> grad_out, q;
  const HeadRows<In> grad_q;
  RawRows<In, T> grad, rows;

  SOLA_DEVICE QueryGradients(const ReadParams& params, const TokenRange& range)
      : p(params),
        at(range),
        grad_out(p.x, at, p.heads, 0, p.V),
        q(p.phi, at, p.heads, 0, p.D),
        grad_q(p.out, at, p.heads, 0, p.D) {
    grad.load(grad_out, own_rows(0));
    rows.load(q, own_rows(0));
  }

  // with kSums the block's share of (dS, dz) is added to `state`, by tiles in `rest` of shared memory
  SOLA_DEVICE void walk(const StateMemory<In, T>& memory, unsigned char* rest, QuerySums<In, T>& state) {
    for (int64_t first = 0; first < at.tokens; first += kTile) {
      const int64_t next = first + kTile;
      prefetch_own<T>(q, own_rows(next));
      if constexpr (!is_half<typename WideRange<In>::Mul>) prefetch_own<T>(grad_out, own_rows(next));
      const QueryTiles<In, T> tiles(rest, int(first / kTile));
      if constexpr (kSums<T>) {
        if (tiles.kBuffers == 1) sync_block();
        store_grad(tiles, grad);
      }
      using Mul = typename WideRange<In>::Mul;
      LeftRows<Mul, T> left(memory.scratch());
      left.set(grad);
      // wide types leave no registers for them beside the product
      const auto load_next = [&] {
        if (next < at.tokens) grad.load(grad_out, own_rows(next));
      };
      if constexpr (is_half<Mul>) load_next();
      float sums[1][T / 8][4];
      clear(sums);
      multiply_rows<Along::depth>(sums, left, memory.state());
      if constexpr (!is_half<Mul>) load_next();
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t token = own_rows(first) + neighbour_row(half);
        float phi[T / 32][8], g[T / 32][8];
#pragma unroll
        for (int group = 0; group < T / 32; ++group) {
          rows.neighbours(half, group, phi[group]);
          Features<is_half<In>>{p.map}(0, phi[group]);
          take(sums, half, group, g[group]);
        }
        const Normaliser by = normaliser<In, T>(p, memory, token < at.tokens, phi, g);
        store_gradient<In, T>(p, memory, by, phi, g, grad_q, token);
        if constexpr (kSums<T>) {
          store_query<In, T>(tiles, by, half, phi);
        } else {
          store_normaliser(p, at, token, by);
        }
      }
      if constexpr (kSums<T>) sync_block();
      if (next < at.tokens) rows.load(q, own_rows(next));
      if constexpr (kSums<T>) state.add(tiles);
    }
  }
};

template <class In, int T>
struct KeyGradients {
  const ReadParams& p;
  const TokenRange at;
  const HeadRows<const In> v, k;
  const HeadRows<In> grad_k, grad_v;
  RawRows<In, T> values, keys;

  SOLA_DEVICE KeyGradients(const ReadParams& params, const TokenRange& range)
      : p(params),
        at(range),
        v(p.x, at, p.heads, 0, p.V),
        k(p.phi, at, p.heads, 0, p.D),
        grad_k(p.out, at, p.heads, 0, p.D),
        grad_v(p.second, at, p.heads, 0, p.V) {
    values.load(v, own_rows(0));
    keys.load(k, own_rows(0));
  }

  SOLA_DEVICE void walk(const StateMemory<In, T>& memory) {
    using Mul = typename WideRange<In>::Mul;
    for (int64_t first = own_rows(0); first < at.tokens; first += kTile) {
      const int64_t next = first + kTile;
      prefetch_own<T>(k, next);
      LeftRows<Mul, T> left(memory.scratch()), mapped(memory.scratch());
      left.set(values);
      if (next < at.tokens) values.load(v, next);
      multiply_parts<Along::depth>(left, memory.state(), [&](const auto& sums, int part) {
        store_rows<kPart<T>>(grad_k, first, 32 * part, [&](int half, int group, float (&g)[8]) {
          float x[8], z[8];
          keys.neighbours(half, part + group, x);
          Features<is_half<In>>{p.map}(0, x);
          take(sums, half, group, g);
          memory.companions(part + group, z);
#pragma unroll
          for (int j = 0; j < 8; ++j) g[j] += z[j];
          multiply_slopes(p.map, x, g);
          mapped.set(x, half, part + group);
        });
      });
      if (next < at.tokens) keys.load(k, next);
      multiply_parts<Along::other>(mapped, memory.state(), [&](const auto& sums, int part) {
        store_rows<kPart<T>>(grad_v, first, 32 * part,
                             [&](int half, int group, float (&x)[8]) { take(sums, half, group, x); });
      });
    }
  }
};

}  // namespace sola::cuda
