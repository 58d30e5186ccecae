// plain structs handed from the host side to the kernels; strides are in elements, offsets are int64
#pragma once

#include <cstdint>

namespace sola {

enum class Dtype { f64, f32, bf16, f16 };

enum class FeatureMap { elu1, relu, identity, exp };

// a (batch, token, head, channel) tensor whose last dimension is contiguous
struct View {
  void* data = nullptr;
  int64_t batch = 0, token = 0, head = 0;
};

// B batch, N queries, M keys, H heads, D head dim, V value head dim
struct AttentionSizes {
  int64_t B, N, M, H, D, V;
};

struct SoftmaxParams {
  AttentionSizes size;
  View q, k, v, out;
  void* logsumexp;  // (B, H, N), float or double
  double scale;
  bool causal;
  // backward only
  View grad_out, grad_q, grad_k, grad_v;
};

struct LinearParams {
  AttentionSizes size;
  View q, k, v, out;
  void* state;    // (B, H, D, V), float or double
  void* key_sum;  // (B, H, D)
  FeatureMap map;
  bool normalize;
  double eps;
  // backward only
  View grad_out, grad_q, grad_k, grad_v;
};

struct ChunkedParams {
  AttentionSizes size;
  View q, k, v, out;
  void* normaliser;         // (B, H, N), float or double; unused without normalize
  const double* log_decay;  // (H), natural logarithm; zero means no decay
  FeatureMap map;
  bool causal, normalize;
  double eps;
  int64_t chunk;
  // backward only
  View grad_out, grad_q, grad_k, grad_v;
  bool decay_grad;  // whether the gradient of log_decay is wanted
};

// B batch, N tokens, C channels; views have no head stride
struct WkvParams {
  int64_t B, N, C;
  View k, v, out;
  const void* decay;     // (C), float or double, per token
  const void* bonus;     // (C)
  void* log_normaliser;  // (B, N, C), float or double; null when nobody will need it
  void* exact_out;       // (B, N, C), float: out before it is rounded to half precision; null otherwise
  // backward only
  View grad_out, grad_k, grad_v;
  void* grad_decay;  // (B, stretches, C) partial sums, float or double
  void* grad_bonus;  // (B, stretches, C)
  int64_t stretches;
};

// mixes of one token that a call makes at the most
constexpr int kMostMixes = 8;

// tokens on a grid of H rows and W columns, C channels; of views `token` is the step between rows, `head` between
// columns
struct ShiftMixParams {
  int64_t B, H, W, C;
  int mixes;
  View x;
  View mixed[kMostMixes];  // outputs, or their gradients
  const void* ratios;      // (mixes, C), float or double: the token's own share
  // backward only
  View grad_x;
  void* grad_ratios;  // (B, ranges of tokens, mixes, C) partial sums, float or double
};

// tokens `stride` numbers apart
struct Rows {
  void* data = nullptr;
  int64_t stride = 0;
};

// N tokens, C channels, M hidden units; weights are dense
struct ChannelMixParams {
  int64_t N, C, M;
  Rows x_k, x_r, out;
  const void *key, *value, *receptance;  // (M, C), (C, M), (C, C)
  // backward only
  Rows grad_out, grad_x_k, grad_x_r;
  // weights transposed, for products that can't read them so: (C, M), (M, C), (C, C); null otherwise
  const void *key_t, *value_t, *receptance_t;
  // shares of the weights' gradients, float or double, columns padded to vectors
  void *grad_key, *grad_value, *grad_receptance;  // (shares, M, C), (shares, C, M), (shares, C, C)
};

// N tokens, C channels; parameters are dense
struct LayerNormParams {
  int64_t N, C;
  Rows x, out;
  const void *weight, *bias;  // (C)
  bool wide;                  // whether parameters are in the type of the sums, and not in that of x
  double eps;
  // backward only
  Rows grad_out, grad_x;
  void* sums;  // (ranges of tokens, 2, C) shares of the gradients of weight and bias, float or double
};

}  // namespace sola
