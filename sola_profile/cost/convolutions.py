"""Bytes that convolutions and their gradients hold inside on the CPU, read off the allocations of torch 2.13.

oneDNN computes them in copies that go through PyTorch's allocator. Of images in rows it takes copies whose channels are
rounded up to a block; images in channels-last memory are read and written as they are, and only weights are copied. The gradient
of a strided convolution's image goes through channels-last memory and comes back in a third copy. What its compiled
kernels don't know unfolds every image of a thread (``gemm_convolution_utils.cpp`` in oneDNN): groups of a few channels, gradients
of depthwise weights larger than 3 × 3, and dilated kernels with strides.

With a single thread PyTorch keeps 1 × 1 convolutions of few images to itself, which need nothing, and small ones of any kind,
which unfold their input; so do all in float64, which oneDNN doesn't know, and in half precision where the processor lacks what
it wants.

Threads that unfold large images hold less of a result's windows than is counted here, as much as their caches take. Left out:
what is small beside the copies of an image (oneDNN's scratch of some 12 KB a call), and the shares of a gradient of dense
weights, where threads divide the images among them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# oneDNN rounds channels up to its block, a vector of float32
BLOCK = 16 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else 8
# who knows whether the processor has what oneDNN wants for them; builds of torch without oneDNN have neither
_HALF = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
# the block of images too narrow for a vector, and the channels of a pixel that are read as they lie
_NARROW_BLOCK = 8
_PIXEL = 3
# rows of the largest depthwise kernel whose gradient is compiled
_SMALL_KERNEL = 3
# and of the largest kernel of any kind
_LARGEST_KERNEL = 14
# and of the largest one over a whole image that isn't multiplied like a vector
_SMALL_WHOLE = 5
# unfolded images of so many pixels a thread are left to one thread after the other
_UNFOLDED_PIXELS = 256
# bytes where elements are meant: sums of a weight's gradient take four times their size
_SUMS = 4


@dataclass(frozen=True)
class _Convolution:
    """One call: its image, its result (or that result's gradient), and how the two belong together."""

    x: Tensor
    y: Tensor
    weight: Tensor
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    groups: int

    @classmethod
    def of(cls, x: Tensor, y: Tensor, weight: Tensor, options: tuple[Any, ...]) -> _Convolution:
        stride, padding, dilation, transposed, _output_padding, groups = options
        return cls(x, y, weight, stride, padding, dilation, transposed, groups)

    @property
    def kernel(self) -> torch.Size:
        return self.weight.shape[2:]

    @property
    def strided(self) -> bool:
        return max(self.stride) > 1

    @property
    def dilated(self) -> bool:
        return max(self.dilation) > 1

    @property
    def depthwise(self) -> bool:
        return 1 < self.groups == self.x.size(1) == self.y.size(1)

    @property
    def group(self) -> tuple[int, int]:
        """Channels of a group of the image and of the result."""
        return self.x.size(1) // self.groups, self.y.size(1) // self.groups

    def group_fits(self, block: int) -> bool:
        return self.groups == 1 or all(channels % block == 0 for channels in self.group)

    @property
    def reads_pixels(self) -> bool:
        """Images of few channels are read as they are."""
        return self.groups == 1 and self.x.size(1) < BLOCK and max(self.kernel) > 1 and not self.transposed

    @property
    def is_product(self) -> bool:
        """A large kernel that covers the whole image, which AVX-512 multiplies with as with a matrix."""
        whole = self.kernel == self.x.shape[2:] and not any(self.padding) and self.groups == 1
        return whole and BLOCK > _NARROW_BLOCK and min(self.kernel) > _SMALL_WHOLE and not self.transposed

    @property
    def unfolds(self) -> bool:
        return self.strided or max(self.kernel) > 1 or any(self.padding)

    def column_bytes(self) -> Any:
        """Every window of an image's part that belongs to a group, as a column."""
        pixels = math.prod(self.y.shape[2:])
        return self.group[0] * math.prod(self.kernel) * pixels * self.y.element_size() if self.unfolds else 0

    def gathered_bytes(self) -> Any:
        """Every thread gathers the pixels of an image that a strided 1 × 1 convolution looks at."""
        gathers = max(self.kernel) == 1 and self.strided and self.groups == 1 and self.x.dtype == torch.float32
        if not gathers:
            return 0
        return torch.get_num_threads() * (nbytes(self.y) // (self.y.size(0) * self.y.size(1)) * blocked(self.x.size(1)))


def nbytes(tensor: Tensor) -> Any:
    """Of the elements, whatever lies between them."""
    return tensor.numel() * tensor.element_size()


def blocked(channels: Any, block: int = BLOCK) -> Any:
    """Channels rounded up to the block."""
    return -(-channels // block) * block


def _blocked_bytes(tensor: Tensor, block: int = BLOCK) -> Any:
    """A copy of ``(B, C, …)`` with C rounded up to the block."""
    channels = tensor.size(1)
    return nbytes(tensor) // channels * blocked(channels, block) if channels else 0


def _weight_bytes(call: _Convolution, block: int = BLOCK, *, rows: bool = True, columns: bool = True) -> Any:
    """A copy of the weight with its channels rounded up: those of the result (``rows``) and of the image (``columns``)."""
    weight = call.weight
    if call.groups > 1:
        return nbytes(weight) // weight.size(0) * blocked(weight.size(0), block) if call.depthwise else nbytes(weight)
    sides = [
        blocked(side, block) if wide else side for side, wide in zip(weight.shape[:2], (rows, columns), strict=True)
    ]
    return math.prod((*sides, *weight.shape[2:], weight.element_size()))


def convolution_bytes(out: Tensor, x: Tensor, weight: Tensor, _bias: object, *rest: Any) -> tuple[Any, ...]:
    """Beside the result, at a convolution's moments; an image's sides may be symbols."""
    call = _Convolution.of(x, out, weight, rest)
    if _stays_in_rows(call):
        copies, kept = _blocks_in_rows(call)
        # the blocked output stands beside the copies, then beside the plain output, which is counted already
        return sum(copies) + sum(kept) - nbytes(out), sum(kept)
    if not _reaches_onednn(call):
        # groups are cut out and computed one by one, and joined
        part = nbytes(x) // call.groups if call.groups > 1 else 0
        return _unfolded_bytes(call) + part, nbytes(out) if call.groups > 1 else 0
    if is_channels_last(x):
        return (_plain_weight_bytes(call) + _grouped_weight_bytes(call),)
    before = _plain_copy_bytes(x)
    if call.transposed:
        # a gradient of an image, as far as oneDNN knows
        return before + nbytes(x) + nbytes(weight) + _image_bytes(x), before + 2 * nbytes(out)
    return before + torch.get_num_threads() * call.column_bytes(), before + nbytes(out)


def convolution_buffers(
    out: Tensor, x: Tensor, weight: Tensor, bias: object, *rest: Any
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Bytes of the blocks that a convolution takes: given back before its result has a place, and behind that."""
    call = _Convolution.of(x, out, weight, rest)
    if _stays_in_rows(call):
        return _blocks_in_rows(call)
    return (), (max(convolution_bytes(out, x, weight, bias, *rest)),)


def _stays_in_rows(call: _Convolution) -> bool:
    """Whether oneDNN computes in blocks of channels, and neither pixel by pixel nor unfolded."""
    if not _reaches_onednn(call) or is_channels_last(call.x):
        return False
    in_pixels = call.transposed and call.strided
    return call.x.dtype != torch.float32 or not (in_pixels or (not call.transposed and _unfolds_for_result(call)))


def _blocks_in_rows(call: _Convolution) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Copies of image and weight; what the image is copied from, and the output in blocks."""
    gathered = call.gathered_bytes()
    plain = call.reads_pixels and not gathered
    copies = (0 if plain else _blocked_bytes(call.x), _weight_bytes(call, columns=not plain), gathered)
    return copies, (_plain_copy_bytes(call.x), _blocked_bytes(call.y))


def _reaches_onednn(call: _Convolution) -> bool:
    return call.x.dim() != 4 or call.transposed or _goes_to_onednn(call)


def convolution_backward_bytes(
    out: tuple[Tensor | None, ...], grad: Tensor, x: Tensor, weight: Tensor, bias: object, *rest: Any
) -> tuple[Any, ...]:
    """Beside the results, at the moments of a convolution's gradients: the image's first, then the weight's."""
    *options, mask = rest
    call = _Convolution.of(x, grad, weight, tuple(options))
    if not _reaches_onednn(call):
        parts = (nbytes(x) + nbytes(grad)) // call.groups if call.groups > 1 else 0
        # the gradient of the bias sums up a copy in single precision, where there is one
        single = 4 * grad.numel() // call.groups if x.element_size() == 2 and bias is not None else 0
        return _unfolded_bytes(call) + parts, single + parts
    if x.dtype != torch.float32:
        # in half precision some of the gradients are blocked whatever the image's memory is
        return (_blocked_bytes(grad) + _blocked_bytes(x) + nbytes(weight),)
    kept = _copied_bytes(call)
    done = nbytes(x) if mask[0] else 0
    rows, pixels = _weight_gradient_in_rows, _weight_gradient_of_pixels
    moments = [*(_image_gradient(call) if mask[0] else ())]
    if mask[1]:
        moments += [done + moment for moment in (pixels(call) if is_channels_last(x) else rows(call))]
    results = sum(nbytes(result) for result in out if result is not None)
    return tuple(kept + moment - results for moment in moments)


def _image_gradient(call: _Convolution) -> tuple[Any, ...]:
    """While the gradient of an image is computed, and while it is brought into the image's memory."""
    x, grad, weight = call.x, call.y, nbytes(call.weight)
    through_pixels = call.strided and not call.transposed and not call.dilated and call.group_fits(BLOCK)
    if is_channels_last(x):
        scratch = _image_bytes(grad) if through_pixels else 0
        return (_plain_weight_bytes(call) + nbytes(x) + _grouped_weight_bytes(call) + scratch,)
    if _unfolds_for_image(call):
        return nbytes(x) + _threads(call) * call.column_bytes(), 2 * nbytes(x)
    if call.is_product:
        return weight + nbytes(x), 3 * nbytes(x)
    if through_pixels:
        weight = _weight_bytes(call, rows=False)
        return nbytes(grad) + weight + nbytes(x) + _image_bytes(grad), 3 * nbytes(x)
    ready = _blocked_bytes(x)
    return _blocked_bytes(grad) + _weight_bytes(call) + ready, ready + nbytes(x)


def _weight_gradient_in_rows(call: _Convolution) -> tuple[Any, ...]:
    """While the gradient of a weight is computed from an image in rows, and while it is brought into the weight's memory."""
    x, grad, weight = call.x, call.y, nbytes(call.weight)
    if call.is_product:
        return nbytes(x) + weight, 3 * weight
    if _unfolds_for_weight(call):
        return weight + _weight_threads(call) * (_SUMS * weight + call.column_bytes()), 2 * weight
    if call.reads_pixels and x.size(1) <= _PIXEL:
        ready = _weight_bytes(call, columns=False)
        return _blocked_bytes(grad) + ready + (torch.get_num_threads() - 1) * ready, ready + weight
    block = _NARROW_BLOCK if call.reads_pixels else BLOCK
    ready = _weight_bytes(call, block)
    return _blocked_bytes(grad, block) + _blocked_bytes(x, block) + ready + call.gathered_bytes(), ready + weight


def _weight_gradient_of_pixels(call: _Convolution) -> tuple[Any, ...]:
    """The same where a pixel's channels lie side by side: the result is written twice, beside what it is made from."""
    plain, weight = _plain_weight_bytes(call), nbytes(call.weight)
    if max(call.kernel) > _LARGEST_KERNEL and not call.depthwise:
        image = nbytes(call.x) // max(call.x.size(0) * call.groups, 1)
        return plain + weight + _weight_threads(call) * (
            _SUMS * weight + call.column_bytes() + image
        ), plain + 3 * weight
    compiled = not call.depthwise or max(call.kernel) <= _SMALL_KERNEL
    ready = _weight_bytes(call) if call.groups == 1 or (call.depthwise and compiled) else _filled_weight_bytes(call)
    return (plain + ready + call.gathered_bytes() + 2 * weight,)


def _filled_weight_bytes(call: _Convolution) -> Any:
    """Weights of groups, each filled up to whole blocks on both sides."""
    image, result = (blocked(channels) for channels in call.group)
    return call.groups * image * result * math.prod(call.kernel) * call.weight.element_size()


def _grouped_weight_bytes(call: _Convolution) -> Any:
    """What oneDNN reads beside pixels."""
    narrow = call.groups > 1 and not call.depthwise and min(call.group) < _NARROW_BLOCK
    return _filled_weight_bytes(call) if narrow else nbytes(call.weight)


def _plain_weight_bytes(call: _Convolution) -> Any:
    """A copy in channels-last memory, where the weight isn't."""
    return 0 if call.weight.is_contiguous(memory_format=torch.channels_last) else nbytes(call.weight)


def _unfolds_groups(call: _Convolution) -> bool:
    """Groups too narrow for a vector."""
    return not call.depthwise and not call.group_fits(BLOCK // 4 if BLOCK > _NARROW_BLOCK else BLOCK)


def _unfolds_for_result(call: _Convolution) -> bool:
    """Groups too narrow, or a depthwise kernel that reaches too far."""
    reach = max((rows - 1) * apart + 1 for rows, apart in zip(call.kernel, call.dilation, strict=True))
    return _unfolds_groups(call) or (call.depthwise and reach > _LARGEST_KERNEL)


def _unfolds_for_image(call: _Convolution) -> bool:
    if call.transposed:
        return False
    large = max(call.kernel) > _LARGEST_KERNEL and not (call.depthwise or call.strided)
    return large or _unfolds_groups(call) or (call.dilated and (call.strided or call.depthwise))


def _unfolds_for_weight(call: _Convolution) -> bool:
    if call.transposed:
        return False
    if max(call.kernel) > _LARGEST_KERNEL:
        return True
    if call.dilated and (call.strided or call.depthwise or BLOCK == _NARROW_BLOCK):
        return True
    return max(call.kernel) > _SMALL_KERNEL if call.depthwise else not call.group_fits(_NARROW_BLOCK)


def _weight_threads(call: _Convolution) -> int:
    """The same, and sum up a weight's gradient of their own."""
    small = math.prod(call.y.shape[2:]) // torch.get_num_threads() < _UNFOLDED_PIXELS
    return _threads(call) if small else 1


def _threads(call: _Convolution) -> int:
    """Threads that unfold images of their own."""
    return torch.get_num_threads() if call.x.size(0) > 1 or call.groups > 2 else 1


def _image_bytes(tensor: Tensor) -> Any:
    """One image for every thread."""
    return torch.get_num_threads() * (nbytes(tensor) // tensor.size(0)) if tensor.size(0) else 0


def _copied_bytes(call: _Convolution) -> Any:
    """The image and its result's gradient, where they aren't dense in the memory format that is computed in."""
    memory = torch.channels_last if is_channels_last(call.x) else torch.contiguous_format
    return sum(nbytes(tensor) for tensor in (call.x, call.y) if not tensor.is_contiguous(memory_format=memory))


def _unfolded_bytes(call: _Convolution) -> Any:
    """Every window of all images as a column, one group's."""
    if max(call.kernel) == 1 and not call.strided and not any(call.padding):
        return 0
    return call.y.size(0) * call.y.size(2) * call.y.size(3) * call.weight[0].numel() * call.y.element_size()


def is_channels_last(x: Tensor) -> bool:
    """As PyTorch says (``is_channels_last_strides_2d`` in c10/core/MemoryFormat.h). Asks symbolic strides nothing."""
    pixel = x.stride(3) if has_neighbouring_channels(x) else 0
    # the step of a single pixel tells as well
    if isinstance(pixel, int) and pixel < x.size(1):
        return False
    # a view may have any step from a single image to the next
    to_next, row = x.stride(0), x.stride(2)
    if isinstance(row, torch.SymInt):
        return isinstance(to_next, torch.SymInt)
    return isinstance(to_next, torch.SymInt) or to_next >= row * x.size(2)


def has_neighbouring_channels(x: Tensor) -> bool:
    """Whether the channels of a pixel lie side by side; of one channel nobody can tell."""
    step = x.stride(1) if x.dim() == 4 else 0
    return isinstance(step, int) and step == 1 and x.size(1) > 1


def _plain_copy_bytes(x: Tensor) -> Any:
    """What oneDNN's copies are made from, where the image itself isn't row behind row."""
    if any(isinstance(step, torch.SymInt) for step in x.stride()):
        return nbytes(x) if has_neighbouring_channels(x) else 0
    return 0 if x.is_contiguous() else nbytes(x)


def _goes_to_onednn(call: _Convolution) -> bool:
    """The rule of PyTorch (``use_mkldnn`` in ATen/native/Convolution.cpp of 2.13).

    A symbolic image counts as large: asking would bind the whole formula to the answer, and small maps are seldom where
    the peak is.
    """
    x = call.x
    if x.dtype != torch.float32:
        return _known_to_onednn(x.dtype)
    stepped = call.strided or call.dilated
    large_kernel = min(call.kernel) > 3
    worthwhile = stepped or x.size(0) >= 16 or max(call.kernel) != 1 or torch.get_num_threads() > 1
    large = isinstance(x.numel(), torch.SymInt) or x.numel() > 20480
    return worthwhile and (call.groups > 1 or large_kernel or x.size(0) > 1 or large)


def _known_to_onednn(dtype: torch.dtype) -> bool:
    supported = getattr(torch.ops.mkldnn, _HALF.get(dtype, ""), None)
    return dtype == torch.float32 or bool(supported is not None and supported())
