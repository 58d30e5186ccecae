// bidirectional WKV, forward: what each stretch of tokens sums up, what enters it from both sides, its averages

#include "cuda/kernels.h"
#include "cuda/wkv_connect.cuh"

namespace sola::cuda {
namespace {

constexpr int kTokens = kWkvForwardTokens;
using Numbers = Column<kTokens>;
using State = Scans<2>;

// columns of shared memory
enum Columns { kWeights, kMaxima, kValues, kFirst, kSecond, kReference, kColumns };

constexpr size_t bytes(int columns) { return sizeof(float) * columns * kTokens * kWkvThreads; }

template <class In>
SOLA_DEVICE void load_stretch(const WkvParams& p, const WkvPlace& at, const Channel& channel) {
  const Numbers weights(kWeights);
  const auto as_is = [](float x) { return x; };
  weights.load(row_of<const In>(p.k, at.batch, at.begin, 0) + at.channel, p.k.token, at.tokens, as_is);
  Numbers{kValues}.load(row_of<const In>(p.v, at.batch, at.begin, 0) + at.channel, p.v.token, at.tokens, as_is);
  exponentiate(weights, Numbers{kMaxima}, at.tokens, channel.tile);
}

template <Direction direction, class Visit>
SOLA_DEVICE void scan_stretch(const WkvPlace& at, const Channel& channel, Scan<2>& scan, const Visit& visit) {
  for_tiles<direction>(at.tokens, channel.tile, [&](int first, int tokens) {
    const ScanTile tile{
        &Numbers{kWeights}[first], &Numbers{kValues}[first], nullptr, Numbers{kMaxima}[first], tokens, kWkvThreads};
    visit(first, tile, reference_in_tile(scan, channel, tile.maximum));
  });
}

template <class In>
__global__ void __launch_bounds__(kWkvThreads, 1) gather(WkvWork work) {
  const WkvParams& p = work.op;
  const WkvPlace at = wkv_place<kTokens>(p);
  if (!at.exists) return;
  const Channel channel = load_channel<kTokens>(p, at.channel);
  load_stretch<In>(p, at, channel);
  Scan<2> left, right;
  const auto nothing = [](int, const float*) {};
  scan_stretch<Direction::left_to_right>(at, channel, left, [&](int, const ScanTile& tile, float) {
    scan_tile<Direction::left_to_right>(tile, channel, left, nothing);
  });
  scan_stretch<Direction::right_to_left>(at, channel, right, [&](int, const ScanTile& tile, float) {
    scan_tile<Direction::right_to_left>(tile, channel, right, nothing);
  });
  const int64_t index = at.batch * p.stretches + at.stretch;
  store_scan(left, state_at(work.states, index, 0, State::kNumbers, p, at.channel), p.C);
  store_scan(right, state_at(work.states, index, 1, State::kNumbers, p, at.channel), p.C);
}

template <class In>
__global__ void __launch_bounds__(kWkvThreads, 1) average(WkvWork work) {
  const WkvParams& p = work.op;
  const WkvPlace at = wkv_place<kTokens>(p);
  if (!at.exists) return;
  const Channel channel = load_channel<kTokens>(p, at.channel);
  load_stretch<In>(p, at, channel);
  Scan<2> left, right;
  if (p.stretches > 1) {
    const int64_t index = at.batch * p.stretches + at.stretch;
    left = load_scan<2>(state_at(work.states, index, 0, State::kNumbers, p, at.channel), p.C);
    right = load_scan<2>(state_at(work.states, index, 1, State::kNumbers, p, at.channel), p.C);
  }
  scan_stretch<Direction::right_to_left>(at, channel, right, [&](int first, const ScanTile& tile, float reference) {
    Numbers{kReference}[first] = reference;
    scan_tile<Direction::right_to_left>(tile, channel, right, [&](int i, const float* value) {
      Numbers{kFirst}[first + i] = value[0];
      Numbers{kSecond}[first + i] = value[1];
    });
  });
  In* out = row_of<In>(p.out, at.batch, at.begin, 0) + at.channel;
  const int64_t saved = (at.batch * p.N + at.begin) * p.C + at.channel;
  scan_stretch<Direction::left_to_right>(at, channel, left, [&](int first, const ScanTile& tile, float left_reference) {
    // one reference for the three parts, the same all over the tile
    const float right_reference = Numbers{kReference}[first], own = tile.maximum + channel.bonus;
    const float reference = larger(larger(left_reference, right_reference), own);
    const float by_left = expf(left_reference - reference), by_right = expf(right_reference - reference);
    const float by_own = expf(own - reference);
    scan_tile<Direction::left_to_right>(tile, channel, left, [&](int i, const float* value) {
      const float weight = by_own * tile.weight[i * kWkvThreads];
      const float numerator =
          by_left * value[0] + by_right * Numbers{kFirst}[first + i] + weight * tile.first[i * kWkvThreads];
      const float denominator = by_left * value[1] + by_right * Numbers{kSecond}[first + i] + weight;
      const float result = numerator / denominator;
      out[(first + i) * p.out.token] = from_float<In>(result);
      if (p.log_normaliser)
        static_cast<float*>(p.log_normaliser)[saved + (first + i) * p.C] = reference + logf(denominator);
      if (p.exact_out) static_cast<float*>(p.exact_out)[saved + (first + i) * p.C] = result;
    });
  });
}

}  // namespace

int launch_wkv_forward(const WkvWork& work, Dtype dtype, void* stream) {
  const WkvParams& p = work.op;
  const int64_t blocks = p.B * p.stretches * ((p.C + kWkvThreads - 1) / kWkvThreads);
  return with_input(dtype, [&](auto in) {
    using In = decltype(in);
    int error = cudaSuccess;
    if (p.stretches > 1) {
      error = launch(gather<In>, blocks, kWkvThreads, bytes(kFirst), stream, work);
      if (error == cudaSuccess) error = launch_connect<State, kTokens>(work, stream);
    }
    return error ? error : launch(average<In>, blocks, kWkvThreads, bytes(kColumns), stream, work);
  });
}

}  // namespace sola::cuda
