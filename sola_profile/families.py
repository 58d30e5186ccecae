"""Names of operator families: kinds of kernels whose rate depends on few lengths. A machine has a rate for each."""

LINEAR, BATCHED = "linear", "batched product"
CONVOLUTION, STEM, PATCHES = "convolution", "stem convolution", "patches"
POINTWISE, DEPTHWISE = "pointwise", "depthwise"
CHANNELS_LAST = ", channels last"
SDPA, SOFTMAX_ATTENTION, LINEAR_ATTENTION, CHUNKED_ATTENTION, WKV, SHIFT_MIX, TOKEN_NORM, CHANNEL_MIX = (
    "scaled dot product attention",
    "sola softmax attention",
    "sola linear attention",
    "sola chunked attention",
    "sola wkv",
    "sola shift mix",
    "sola layer norm",
    "sola channel mix",
)
LAYER_NORM, BATCH_NORM, GROUP_NORM, SOFTMAX = "layer norm", "batch norm", "group norm", "softmax"
COPY, TRANSPOSE, SUM, POOL, AVERAGE = "copy", "transpose", "sum", "max pool", "average pool"
NEAREST, BILINEAR, BICUBIC = "resize, nearest", "resize, bilinear", "resize, bicubic"
ANTIALIASED = ", antialiased"
ELEMENTWISE = "element-wise "
