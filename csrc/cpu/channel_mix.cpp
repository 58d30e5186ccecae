// channel mix on the CPU: checks, outputs, ranges of tokens and of hidden units, threads

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include "cpu/held.h"
#include "cpu/parallel.h"
#include "sizes.h"

namespace sola {
namespace {

constexpr const char* kOp = "channel_mix";
constexpr int64_t kTileRows = 64, kUnitBlock = 128;
// tokens that share one reading of the weights, at most
constexpr int64_t kMostRows = 512;
// tokens of a share of the weights' gradients, at least: it is as large as the weights, and is added to the others
constexpr int64_t kShareRows = 128;

// bfloat16 products pair up neighbours in both widths, so these must be even
BrgemmBf16 brgemm_for(const ChannelMixParams& p, Dtype dtype) {
  return p.C % 2 == 0 && p.M % 2 == 0 ? native_for(dtype) : nullptr;
}

int64_t tiles_of(int64_t tokens) { return (tokens + kTileRows - 1) / kTileRows; }

// of one range
int64_t most_rows(const ChannelMixParams& p) { return std::min(kMostRows, tiles_of(p.N) * kTileRows); }

Place place_of(int64_t index, int64_t rows, int64_t tokens) {
  return {0, 0, index * rows, std::min((index + 1) * rows, tokens)};
}

// few tokens are cut finer, and where a tile for every thread is still not enough hidden units are cut as well
struct ForwardCut {
  // room: tokens that scratch is made for, all that a range may have unless ranges are cut finer, so that images of
  // different sizes hold the same
  int64_t tiles, rows, room, chunks, step, shares;

  explicit ForwardCut(const ChannelMixParams& p) : tiles(tiles_of(p.N)) {
    const int64_t fewest = (p.N + kMostRows - 1) / kMostRows;
    const int64_t pieces = std::min(tiles, fewest * choose_shares(fewest, tiles));
    rows = (tiles + pieces - 1) / pieces * kTileRows;
    room = pieces > fewest ? rows : most_rows(p);
    chunks = (p.N + rows - 1) / rows;
    const int64_t blocks = (p.M + kUnitBlock - 1) / kUnitBlock, cuts = choose_shares(chunks, blocks);
    step = (blocks + cuts - 1) / cuts;
    shares = (blocks + step - 1) / step;
  }

  double ops(const ChannelMixParams& p) const {
    return 2.0 * double(std::min(rows, p.N)) * double(p.C) * double(2 * p.M / shares + p.C);
  }

  // of a share of the partial sums
  int64_t numbers(const ChannelMixParams& p) const { return tiles * kTileRows * p.C; }
};

struct BackwardCut {
  // room: tokens that scratch is made for, whatever a range has, so that images of different sizes hold the same
  int64_t room, shares, rows, chunks;

  explicit BackwardCut(const ChannelMixParams& p) : room(most_rows(p)) {
    const int64_t tiles = tiles_of(p.N);
    shares = choose_shares(1, std::clamp<int64_t>(p.N / kShareRows, 1, tiles));
    // ranges of nearly the same size, as many for every share
    const int64_t in_share = (tiles + shares - 1) / shares, most = kMostRows / kTileRows;
    const int64_t ranges = (in_share + most - 1) / most;
    rows = (in_share + ranges - 1) / ranges * kTileRows;
    chunks = (p.N + rows - 1) / rows;
    shares = std::min(shares, chunks);
  }

  double ops(const ChannelMixParams& p) const {
    return 2.0 * double(p.N) * double(p.C) * double(5 * p.M + 3 * p.C) / double(shares);
  }
};

at::Tensor forward(const at::Tensor& x_k, const at::Tensor& x_r, const at::Tensor& key, const at::Tensor& value,
                   const at::Tensor& receptance) {
  check_channel_mix(kOp, x_k, x_r, key, value, receptance);
  auto out = at::empty(x_k.sizes(), x_k.options());
  if (out.numel() == 0) return out;
  const at::Tensor mixed = as_rows(x_k), gate = as_rows(x_r);
  const at::Tensor K = key.contiguous(), V = value.contiguous(), R = receptance.contiguous();
  const ChannelMixParams p = channel_mix_params(mixed, gate, K, V, R, out);
  const Dtype dtype = dtype_of(x_k);
  const BrgemmBf16 brgemm = brgemm_for(p, dtype);
  const auto& kernel = kernels().channel_mix_forward;

  const ForwardCut cut(p);
  const int64_t rows = cut.rows, shares = cut.shares, size = cut.numbers(p);
  at::Tensor partial;
  if (shares > 1) partial = at::empty({shares, size}, x_k.options().dtype(accumulate_type(x_k)));
  const auto part = [&](int64_t share, int64_t begin) -> std::byte* {
    if (shares == 1) return nullptr;
    return static_cast<std::byte*>(partial.data_ptr()) + (share * size + begin * p.C) * int64_t(partial.element_size());
  };
  const size_t scratch = kernel.scratch(p, {dtype, brgemm, nullptr}, cut.room);
  run_tasks(cut.chunks * shares, cut.ops(p), dtype, brgemm, scratch, [&](int64_t index, const Task& task) {
    const Place place = place_of(index / shares, rows, p.N);
    const int64_t share = index % shares, first = share * cut.step * kUnitBlock;
    const Units units{first, std::min(first + cut.step * kUnitBlock, p.M)};
    kernel.run(p, task, place, units, part(share, place.begin));
  });
  if (shares > 1) {
    const double ops = 2.0 * kTileRows * double(p.C * p.C);
    run_tasks(cut.tiles, ops, dtype, brgemm, scratch, [&](int64_t index, const Task& task) {
      const Place place = place_of(index, kTileRows, p.N);
      kernel.finish(p, task, place, part(0, place.begin), shares, size);
    });
  }
  return out;
}

// the shares of a gradient of weights, and their sum in the dtype of the weights
struct Shares {
  at::Tensor weights, sums;

  Shares(const at::Tensor& weights, int64_t shares, int64_t padded)
      : weights(weights),
        sums(at::empty({shares, weights.size(0), padded}, weights.options().dtype(accumulate_type(weights)))) {}

  at::Tensor total() const {
    const at::Tensor sum = sums.size(0) == 1 ? sums[0] : sums.sum(0);
    return sum.narrow(1, 0, weights.size(1)).to(weights.scalar_type()).contiguous();
  }
};

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& grad_out, const at::Tensor& x_k, const at::Tensor& x_r, const at::Tensor& key,
    const at::Tensor& value, const at::Tensor& receptance, const at::Tensor& out) {
  check_channel_mix(kOp, x_k, x_r, key, value, receptance);
  auto grad_k = at::empty(x_k.sizes(), x_k.options()), grad_r = at::empty(x_r.sizes(), x_r.options());
  if (x_k.numel() == 0) return {grad_k, grad_r, at::zeros_like(key), at::zeros_like(value), at::zeros_like(receptance)};
  const at::Tensor mixed = as_rows(x_k), gate = as_rows(x_r), grad = as_rows(grad_out), saved = as_rows(out);
  const at::Tensor K = key.contiguous(), V = value.contiguous(), R = receptance.contiguous();
  ChannelMixParams p = channel_mix_params(mixed, gate, K, V, R, saved);
  const Dtype dtype = dtype_of(x_k);
  const BrgemmBf16 brgemm = brgemm_for(p, dtype);
  const Task host{dtype, brgemm, nullptr};
  const auto& kernel = kernels().channel_mix_backward;
  p.grad_out = rows_of(grad);
  p.grad_x_k = rows_of(grad_k);
  p.grad_x_r = rows_of(grad_r);
  at::Tensor turned[3];
  if (brgemm) {
    turned[0] = K.t().contiguous();
    turned[1] = V.t().contiguous();
    turned[2] = R.t().contiguous();
    p.key_t = turned[0].data_ptr();
    p.value_t = turned[1].data_ptr();
    p.receptance_t = turned[2].data_ptr();
  }
  const BackwardCut cut(p);
  const int64_t shares = cut.shares;
  const Shares of_key(key, shares, kernel.padded(host, p.C)), of_value(value, shares, kernel.padded(host, p.M));
  const Shares of_receptance(receptance, shares, kernel.padded(host, p.C));
  p.grad_key = of_key.sums.data_ptr();
  p.grad_value = of_value.sums.data_ptr();
  p.grad_receptance = of_receptance.sums.data_ptr();
  run_tasks(shares, cut.ops(p), dtype, brgemm, kernel.scratch(p, host, cut.room), [&](int64_t share, const Task& task) {
    const int64_t first = share * cut.chunks / shares, last = (share + 1) * cut.chunks / shares;
    for (int64_t i = first; i < last; ++i) kernel.run(p, task, place_of(i, cut.rows, p.N), share, i == first);
  });
  return {grad_k, grad_r, of_key.total(), of_value.total(), of_receptance.total()};
}

// of a number of sums
int64_t sum_bytes(Dtype dtype) { return dtype == Dtype::f64 ? 8 : 4; }

ChannelMixParams sizes_of(int64_t tokens, int64_t channels, int64_t hidden) {
  ChannelMixParams p{};
  p.N = tokens;
  p.C = channels;
  p.M = hidden;
  return p;
}

}  // namespace

int64_t channel_mix_held(int64_t tokens, int64_t channels, int64_t hidden, const std::string& dtype) {
  const ChannelMixParams p = sizes_of(tokens, channels, hidden);
  const Dtype known = dtype_named(dtype);
  const ForwardCut cut(p);
  const size_t scratch = kernels().channel_mix_forward.scratch(p, {known, brgemm_for(p, known), nullptr}, cut.room);
  const int64_t partial = cut.shares > 1 ? cut.shares * cut.numbers(p) * sum_bytes(known) : 0;
  return partial + scratch_of(cut.chunks * cut.shares, cut.ops(p), scratch);
}

std::pair<int64_t, int64_t> channel_mix_backward_held(int64_t tokens, int64_t channels, int64_t hidden,
                                                      const std::string& dtype) {
  const ChannelMixParams p = sizes_of(tokens, channels, hidden);
  const Dtype known = dtype_named(dtype);
  const Task host{known, brgemm_for(p, known), nullptr};
  const auto& kernel = kernels().channel_mix_backward;
  const BackwardCut cut(p);
  const int64_t weights = p.C * (2 * p.M + p.C), number_bytes = known == Dtype::f64 ? 8 : known == Dtype::f32 ? 4 : 2;
  const int64_t turned = host.brgemm ? weights * number_bytes : 0;
  int64_t shares = 0, kept = 0, last = 0;
  for (const auto& [rows, columns] : {std::pair{p.M, p.C}, {p.C, p.M}, {p.C, p.C}}) {
    const int64_t one = rows * kernel.padded(host, columns) * sum_bytes(known);
    const bool is_result = sum_bytes(known) == number_bytes && kernel.padded(host, columns) == columns;
    shares += cut.shares * one;
    // a single share may be the result itself, and what several add up to too
    kept += cut.shares > 1 || !is_result ? cut.shares * one : 0;
    last = cut.shares > 1 && !is_result ? one : 0;
  }
  const int64_t scratch = scratch_of(cut.shares, cut.ops(p), kernel.scratch(p, host, cut.room));
  return {turned + shares + scratch - weights * number_bytes, turned + kept + last};
}

TORCH_LIBRARY_IMPL(sola, CPU, m) {
  m.impl("channel_mix", &forward);
  m.impl("channel_mix_backward", &backward);
}

}  // namespace sola
