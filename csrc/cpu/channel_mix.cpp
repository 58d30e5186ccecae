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
constexpr int64_t kTileRows = 64, kVectorRows = 16;
// hidden units of a piece, at least, and what pieces are multiples of
constexpr int64_t kUnitBlock = 128, kUnitStep = 64;
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

// tokens cut into pieces of nearly the same size, in whole vectors
struct Ranges {
  int64_t tokens, rows, count;

  Ranges(int64_t tokens, int64_t pieces) : tokens(tokens) {
    const int64_t each = (tokens + pieces - 1) / pieces;
    rows = (each + kVectorRows - 1) / kVectorRows * kVectorRows;
    count = (tokens + rows - 1) / rows;
  }

  int64_t tiles() const { return tiles_of(std::min(rows, tokens)); }
  Place operator[](int64_t index) const { return {0, 0, index * rows, std::min((index + 1) * rows, tokens)}; }
  // the tiles of all ranges in turn
  Place tile(int64_t index) const {
    const Place range = (*this)[index / tiles()];
    const int64_t begin = std::min(range.begin + index % tiles() * kTileRows, range.end);
    return {0, 0, begin, std::min(begin + kTileRows, range.end)};
  }
};

// hidden units cut into as many pieces as keep all threads busy with each of `ranges` of tokens
struct UnitCut {
  int64_t step, count;

  UnitCut(int64_t ranges, int64_t units) {
    const int64_t cuts = choose_shares(ranges, std::max<int64_t>(units / kUnitBlock, 1));
    const int64_t each = (units + cuts - 1) / cuts;
    step = (each + kUnitStep - 1) / kUnitStep * kUnitStep;
    count = (units + step - 1) / step;
  }

  Units units(int64_t index, const ChannelMixParams& p) const {
    return {index * step, std::min((index + 1) * step, p.M)};
  }
};

// what pieces of the hidden units give of each tile of tokens, (pieces, tiles, C, 64); nothing where there is one piece
struct Partial {
  const Ranges& ranges;
  int64_t pieces, channels, tiles, size;
  at::Tensor sums;

  Partial(const Ranges& ranges, int64_t pieces, int64_t channels)
      : ranges(ranges),
        pieces(pieces),
        channels(channels),
        tiles(ranges.count * ranges.tiles()),
        size(tiles * kTileRows * channels) {}

  int64_t numbers() const { return pieces > 1 ? pieces * size : 0; }
  void allocate(const at::Tensor& like) {
    if (pieces > 1) sums = at::empty({pieces, size}, like.options().dtype(accumulate_type(like)));
  }
  std::byte* at(int64_t piece, int64_t tile) const {
    if (pieces == 1) return nullptr;
    const int64_t place = piece * size + tile * kTileRows * channels;
    return static_cast<std::byte*>(sums.data_ptr()) + place * int64_t(sums.element_size());
  }
  std::byte* of_range(int64_t piece, int64_t range) const { return at(piece, range * ranges.tiles()); }
  // calls kernel.finish for every tile; `ops`: of one
  template <class Kernel>
  void finish(const Kernel& kernel, const ChannelMixParams& p, const Task& host, double ops) const {
    if (pieces == 1) return;
    const size_t scratch = kernel.scratch(p, host, kTileRows);
    run_tasks(tiles, ops, host.dtype, host.brgemm, scratch, [&](int64_t index, const Task& task) {
      kernel.finish(p, task, ranges.tile(index), at(0, index), pieces, size);
    });
  }
  // bytes of scratch that it needs
  template <class Kernel>
  int64_t held_by_finish(const Kernel& kernel, const ChannelMixParams& p, const Task& host, double ops) const {
    return pieces == 1 ? 0 : scratch_of(tiles, ops, kernel.scratch(p, host, kTileRows));
  }
};

// few tokens are cut finer, and where a tile for every thread is still not enough hidden units are cut as well
struct ForwardCut {
  Ranges ranges;
  UnitCut hidden;
  // tokens that scratch is made for, all that a range may have unless ranges are cut finer, so that images of different
  // sizes hold the same
  int64_t room;

  explicit ForwardCut(const ChannelMixParams& p)
      : ranges(p.N, pieces_of(p.N)),
        hidden(ranges.count, p.M),
        room(ranges.count > fewest_ranges(p.N) ? ranges.rows : most_rows(p)) {}

  static int64_t fewest_ranges(int64_t tokens) { return (tokens + kMostRows - 1) / kMostRows; }
  static int64_t pieces_of(int64_t tokens) {
    const int64_t fewest = fewest_ranges(tokens), tiles = tiles_of(tokens);
    return std::min(tiles, fewest * choose_shares(fewest, tiles));
  }

  double ops(const ChannelMixParams& p) const {
    return 2.0 * double(std::min(ranges.rows, p.N)) * double(p.C) * double(2 * p.M / hidden.count + p.C);
  }
  double ops_to_finish(const ChannelMixParams& p) const { return 2.0 * kTileRows * double(p.C * p.C); }
};

struct BackwardCut {
  Ranges ranges;
  // of the weights' gradients; each has as many ranges as the others, or one more
  int64_t shares;
  UnitCut hidden;
  // tokens that scratch is made for, whatever a range has, so that images of different sizes hold the same
  int64_t room;

  explicit BackwardCut(const ChannelMixParams& p)
      : ranges(p.N, pieces_of(p.N)),
        shares(std::min(shares_of(p.N), ranges.count)),
        hidden(shares, p.M),
        room(most_rows(p)) {}

  static int64_t shares_of(int64_t tokens) { return choose_shares(1, std::max<int64_t>(tokens / kShareRows, 1)); }
  static int64_t pieces_of(int64_t tokens) {
    const int64_t shares = shares_of(tokens), most = shares * kMostRows;
    return shares * ((tokens + most - 1) / most);
  }

  double ops(const ChannelMixParams& p) const {
    return 2.0 * double(p.N) * double(p.C) * double(5 * p.M / hidden.count + 3 * p.C) / double(shares);
  }
  double ops_to_finish(const ChannelMixParams& p) const { return double(hidden.count * kTileRows * p.C); }
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
  const int64_t pieces = cut.hidden.count;
  Partial partial(cut.ranges, pieces, p.C);
  partial.allocate(x_k);
  const Task host{dtype, brgemm, nullptr};
  const size_t scratch = kernel.scratch(p, host, cut.room);
  run_tasks(cut.ranges.count * pieces, cut.ops(p), dtype, brgemm, scratch, [&](int64_t index, const Task& task) {
    const int64_t range = index / pieces, piece = index % pieces;
    kernel.run(p, task, cut.ranges[range], cut.hidden.units(piece, p), partial.of_range(piece, range));
  });
  partial.finish(kernel, p, host, cut.ops_to_finish(p));
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

at::Tensor turn(const ChannelMixBackwardKernels& kernel, const at::Tensor& weights) {
  const int64_t rows = weights.size(0), columns = weights.size(1), tasks = (columns + kUnitBlock - 1) / kUnitBlock;
  auto turned = at::empty({columns, rows}, weights.options());
  // a number takes about as long as two operations
  run_tasks(tasks, 2.0 * double(rows * kUnitBlock), Dtype::bf16, nullptr, 0, [&](int64_t index, const Task&) {
    const int64_t first = index * kUnitBlock;
    kernel.turn(weights.data_ptr(), rows, columns, first, std::min(first + kUnitBlock, columns), turned.data_ptr());
  });
  return turned;
}

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
    turned[0] = turn(kernel, K);
    turned[1] = turn(kernel, V);
    turned[2] = turn(kernel, R);
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
  const int64_t pieces = cut.hidden.count;
  const size_t scratch = kernel.scratch(p, host, cut.room);
  Partial partial(cut.ranges, pieces, p.C);
  partial.allocate(x_k);
  run_tasks(shares * pieces, cut.ops(p), dtype, brgemm, scratch, [&](int64_t index, const Task& task) {
    const int64_t share = index / pieces, piece = index % pieces;
    const int64_t first = share * cut.ranges.count / shares, last = (share + 1) * cut.ranges.count / shares;
    for (int64_t i = first; i < last; ++i) {
      kernel.run(p, task, cut.ranges[i], cut.hidden.units(piece, p), share, i == first, partial.of_range(piece, i));
    }
  });
  partial.finish(kernel, p, host, cut.ops_to_finish(p));
  partial.sums.reset();
  return {grad_k, grad_r, of_key.total(), of_value.total(), of_receptance.total()};
}

// of a number of sums
int64_t sum_bytes(Dtype dtype) { return dtype == Dtype::f64 ? 8 : 4; }

ChannelMixParams sizes_of(int64_t tokens, int64_t channels, int64_t hidden) {
  TORCH_CHECK_VALUE(tokens >= 0 && channels >= 0 && hidden >= 1, kOp, ": there are no ", tokens, " tokens of ",
                    channels, " channels with ", hidden, " hidden units");
  ChannelMixParams p{};
  p.N = tokens;
  p.C = channels;
  p.M = hidden;
  return p;
}

}  // namespace

int64_t channel_mix_held(int64_t tokens, int64_t channels, int64_t hidden, const std::string& dtype) {
  const ChannelMixParams p = sizes_of(tokens, channels, hidden);
  if (p.N * p.C == 0) return 0;
  const Dtype known = dtype_named(dtype);
  const Task host{known, brgemm_for(p, known), nullptr};
  const auto& kernel = kernels().channel_mix_forward;
  const ForwardCut cut(p);
  const Partial partial(cut.ranges, cut.hidden.count, p.C);
  const size_t scratch = kernel.scratch(p, host, cut.room);
  return partial.numbers() * sum_bytes(known) +
         std::max(scratch_of(cut.ranges.count * cut.hidden.count, cut.ops(p), scratch),
                  partial.held_by_finish(kernel, p, host, cut.ops_to_finish(p)));
}

std::pair<int64_t, int64_t> channel_mix_backward_held(int64_t tokens, int64_t channels, int64_t hidden,
                                                      const std::string& dtype) {
  const ChannelMixParams p = sizes_of(tokens, channels, hidden);
  if (p.N * p.C == 0) return {0, 0};
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
  const Partial partial(cut.ranges, cut.hidden.count, p.C);
  const int64_t scratch =
      std::max(scratch_of(cut.shares * cut.hidden.count, cut.ops(p), kernel.scratch(p, host, cut.room)),
               partial.held_by_finish(kernel, p, host, cut.ops_to_finish(p)));
  const int64_t meanwhile = turned + shares + partial.numbers() * sum_bytes(known) + scratch;
  return {meanwhile - weights * number_bytes, turned + kept + last};
}

TORCH_LIBRARY_IMPL(sola, CPU, m) {
  m.impl("channel_mix", &forward);
  m.impl("channel_mix_backward", &backward);
}

}  // namespace sola
