// the walk over tokens that sums up S = Σ w φ(x)ᵀ y and c = Σ u φ(x), for kernels that do so
//
// The next step's rows are on their way to registers while this step's are multiplied.
#pragma once

#include "cuda/state_sums.cuh"
#include "cuda/tokens.cuh"

namespace sola::cuda {

// tokens of a step: a thread has no more than 128 bytes on their way
template <class In, int T>
constexpr int kGatherStep = int(sizeof(In)) * T > 128 ? 32 : 64;
template <int T>
constexpr int kGatherThreads = T == 128 ? 256 : 128;

template <class In, int T>
using GatherTiles = StepTiles<typename WideRange<In>::Mul, T, kGatherStep<In, T>>;
template <class In, int T>
using GatherSums = StateSums<typename WideRange<In>::Mul, T, kGatherThreads<T> / kWarp>;

template <class In, int T>
constexpr size_t kGatherBytes = GatherTiles<In, T>::kBuffers * GatherTiles<In, T>::kBytes;

// what a decay has left of a token, 0 of one that doesn't exist
SOLA_DEVICE float power_of(const GatherParams& p, const TokenRange& at, float log_decay, int64_t token) {
  if (token >= at.tokens) return 0.0f;
  if (!p.decay) return 1.0f;
  const float distance = float(p.side == Side::left ? at.tokens - 1 - token : token);
  return expf(log_decay * distance) * (p.distances ? distance : 1.0f);
}

// rows of x and y of a step, on their way to a thread that owns the same columns of several rows
template <class In, int T>
struct Step {
  using Mul = typename WideRange<In>::Mul;
  using Tiles = GatherTiles<In, T>;
  static constexpr int kWide = kVector<In>, kAcross = T / kWide, kDown = kGatherThreads<T> / kAcross;
  static constexpr int kVectors = kGatherStep<In, T> / kDown;
  Vec4 x[kVectors], y[kVectors];
  float w[kVectors], u[kVectors];

  SOLA_DEVICE static int row(int n) { return int(threadIdx.x) / kAcross + n * kDown; }
  SOLA_DEVICE static int column() { return int(threadIdx.x) % kAcross * kWide; }

  // where this thread's next row lies, and how far it is to the one behind it; steps follow each other
  struct Source {
    const In* next;
    int64_t down;
    int columns;
    bool vectorial;

    SOLA_DEVICE explicit Source(const HeadRows<const In>& rows)
        : next(rows.at(row(0)) + column()),
          down(kDown * rows.stride),
          columns(rows.columns - column()),
          vectorial(rows.vectorial) {}

    SOLA_DEVICE void load(int rows, Vec4 (&to)[kVectors]) {
      with_bool(vectorial, [&](auto whole) {
#pragma unroll
        for (int n = 0; n < kVectors; ++n) {
          to[n] = load_raw(next, row(n) < rows ? columns : 0, decltype(whole)::value);
          next += down;
        }
      });
    }
  };

  SOLA_DEVICE static void load(const float* weights, const GatherParams& p, const TokenRange& at, int64_t first,
                               float (&to)[kVectors]) {
    const int64_t place = at.head * p.tokens + at.begin + first;
#pragma unroll
    for (int n = 0; n < kVectors; ++n) to[n] = weights && first + row(n) < at.tokens ? weights[place + row(n)] : 1.0f;
  }

  SOLA_DEVICE static int place(int n) { return row(n) * Tiles::kStride + column(); }

  SOLA_DEVICE void store_features(int n, FeatureMap map, const Tiles& tiles) const {
    float numbers[kWide];
    unpack<In>(x[n], numbers);
    Features<is_half<In>>{map}(row(n), numbers);
    store_vector<Mul>(numbers, tiles.x + place(n));
  }
  SOLA_DEVICE void store_values(int n, float factor, const Tiles& tiles) const {
    float numbers[kWide];
    unpack<In>(y[n], numbers);
#pragma unroll
    for (int j = 0; j < kWide; ++j) numbers[j] *= factor;
    store_vector<Mul>(numbers, tiles.y() + place(n));
  }

  // φ(x) and y to shared memory, and 1 for each of the step's rows
  SOLA_DEVICE void store(FeatureMap map, int rows, const Tiles& tiles) const {
#pragma unroll
    for (int n = 0; n < kVectors; ++n) {
      store_features(n, map, tiles);
      if constexpr (std::is_same_v<In, Mul>) {
        store_vec4(tiles.y() + place(n), y[n]);
      } else {
        store_values(n, 1.0f, tiles);
      }
      if (column() == 0) tiles.store_one(row(n), row(n) < rows);
    }
  }

  // φ(x), w y and u to shared memory, with what power(row) says in w and u
  template <class F>
  SOLA_DEVICE void store_weighted(FeatureMap map, const F& power, const Tiles& tiles) const {
#pragma unroll
    for (int n = 0; n < kVectors; ++n) {
      const float factor = power(row(n));
      store_features(n, map, tiles);
      store_values(n, factor * w[n], tiles);
      if (column() == 0) tiles.store_u(row(n), factor * u[n]);
    }
  }
};

// Adds the block's tokens to the T × T part of a state from row d0 and column v0 on. Shared memory is free afterwards.
template <class In, int T>
SOLA_DEVICE void gather_tokens(const GatherParams& p, const TokenRange& at, int d0, int v0, GatherSums<In, T>& state) {
  constexpr int kStep = kGatherStep<In, T>;
  const HeadRows<const In> x(p.x, at, p.heads, d0, min(int64_t(T), p.D - d0));
  const HeadRows<const In> y(p.y, at, p.heads, v0, min(int64_t(T), p.V - v0));
  const float log_gamma = log_decay(p.decay, at.head % p.heads);

  const bool weighted = p.weight || p.coefficient || p.decay;
  Step<In, T> coming;
  typename Step<In, T>::Source xs(x), ys(y);
  const auto rows_of_step = [&](int64_t first) { return int(min(int64_t(kStep), at.tokens - first)); };
  const auto load = [&](int64_t first) {
    xs.load(rows_of_step(first), coming.x);
    ys.load(rows_of_step(first), coming.y);
    if (!weighted) return;
    coming.load(p.weight, p, at, first, coming.w);
    coming.load(p.coefficient, p, at, first, coming.u);
  };
  load(0);
  for (int64_t first = 0; first < at.tokens; first += kStep) {
    const GatherTiles<In, T> tiles(shared_memory(), int(first / kStep));
    if (tiles.kBuffers == 1) sync_block();
    if (weighted) {
      coming.store_weighted(p.map, [&](int row) { return power_of(p, at, log_gamma, first + row); }, tiles);
    } else {
      coming.store(p.map, rows_of_step(first), tiles);
    }
    sync_block();
    if (first + kStep < at.tokens) load(first + kStep);
    state.add(tiles);
  }
  sync_block();
}

}  // namespace sola::cuda
