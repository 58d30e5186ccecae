// gathers the kernels of one instruction set

#include "cpu/isa.h"

namespace sola::SOLA_ISA {

extern const SoftmaxForwardKernels softmax_forward;
extern const SoftmaxBackwardKernels softmax_backward;
extern const LinearKernels linear_attention;
extern const ChunkedKernels chunked_attention;
extern const WkvKernels wkv_forward;
extern const WkvKernels wkv_backward;
extern const ShiftMixKernels shift_mix;
extern const LayerNormKernels layer_norm;
extern const ChannelMixForwardKernels channel_mix_forward;
extern const ChannelMixBackwardKernels channel_mix_backward;
extern const RateKernels rates;

#define SOLA_TEXT_OF(x) #x
#define SOLA_TEXT(x) SOLA_TEXT_OF(x)

extern const Kernels table;
const Kernels table{SOLA_TEXT(SOLA_ISA), softmax_forward,     softmax_backward,     linear_attention,
                    chunked_attention,   wkv_forward,         wkv_backward,         shift_mix,
                    layer_norm,          channel_mix_forward, channel_mix_backward, rates};

}  // namespace sola::SOLA_ISA
