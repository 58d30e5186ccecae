"""Every bad call is refused with a sentence that names the argument, what came and what is allowed.

Tensors with data are checked in C++, tensors without data (meta) in Python: both say the same.
"""

import re
from fractions import Fraction

import pytest
import torch

from sola_vision import ops


def _attention(**changes):
    shapes = {"q": (2, 5, 3, 8), "k": (2, 7, 3, 8), "v": (2, 7, 3, 4)}
    tensors = _tensors(shapes, changes)
    for name in changes.get("sparse_last", ()):
        tensors[name] = tensors[name].transpose(2, 3).contiguous().transpose(2, 3)
    return tensors


def _tensors(shapes, changes):
    tensors = {name: torch.zeros(changes.get(name, shape)) for name, shape in shapes.items()}
    for name, dtype in changes.get("dtypes", {}).items():
        tensors[name] = tensors[name].to(dtype)
    return tensors


def _wkv(**changes):
    return _tensors({"k": (2, 5, 6), "v": (2, 5, 6), "decay": (6,), "bonus": (6,)}, changes)


def _shift_mix(**changes):
    return _tensors({"x": (2, 4, 5, 6), "ratios": (3, 6)}, changes)


def _layer_norm(**changes):
    return _tensors({"x": (2, 5, 6), "weight": (6,), "bias": (6,)}, changes)


def _channel_mix(**changes):
    shapes = {"x_k": (2, 5, 6), "x_r": (2, 5, 6), "key": (8, 6), "value": (6, 8), "receptance": (6, 6)}
    return _tensors(shapes, changes)


_ATTENTION = {
    "rank": ({"q": (5, 3, 8)}, "q must be (B, N, H, D), 4 dimensions, got 3"),
    "rank of v": ({"v": (2, 7, 3, 4, 1)}, "v must be (B, M, H, V), 4 dimensions, got 5"),
    "integer": ({"dtypes": {"q": torch.int64}}, "q must be one of float64, float32, bfloat16, float16, got int64"),
    "bool": ({"dtypes": {"q": torch.bool}}, "q must be one of float64, float32, bfloat16, float16, got bool"),
    "complex": ({"dtypes": {"q": torch.complex64}}, "got complex64"),
    "mixed dtypes": ({"dtypes": {"k": torch.float64}}, "k must have the dtype of q, float32, got float64"),
    "batch": ({"k": (3, 7, 3, 8)}, "k must have size 2 in dimension 0 (the batch of q), got 3"),
    "heads": ({"v": (2, 7, 4, 4)}, "v must have size 3 in dimension 2 (the heads of q), got 4"),
    "head dim": ({"k": (2, 7, 3, 9)}, "k must have size 8 in dimension 3 (the head dim of q), got 9"),
    "keys": ({"v": (2, 6, 3, 4)}, "v must have size 7 in dimension 1 (the tokens of k), got 6"),
    "large D": ({"q": (2, 5, 3, 257), "k": (2, 7, 3, 257)}, "q must have a head dim of 1 to 256, got 257"),
    "no D": ({"q": (2, 5, 3, 0), "k": (2, 7, 3, 0)}, "q must have a head dim of 1 to 256, got 0"),
    "large V": ({"v": (2, 7, 3, 300)}, "v must have a head dim of 1 to 256, got 300"),
    "strides": (
        {"sparse_last": ["v"]},
        "v must be contiguous in its last dimension, got stride 3; call v.contiguous() first",
    ),
}

_WKV = {
    "rank": ({"k": (5, 6)}, "k must be (B, N, C), 3 dimensions, got 2"),
    "shape": ({"v": (2, 4, 6)}, "v must have the shape of k, (2, 5, 6), got (2, 4, 6)"),
    "dtype": ({"dtypes": {"v": torch.float16}}, "v must have the dtype of k, float32, got float16"),
    "decay": ({"decay": (5,)}, "decay must be (C,) with C = 6, got (5,)"),
    "bonus": ({"bonus": (1, 6)}, "bonus must be (C,) with C = 6, got (1, 6)"),
    "decay dtype": ({"dtypes": {"decay": torch.float64}}, "decay must be float32, got float64"),
    "half decay": (
        {"dtypes": {"k": torch.bfloat16, "v": torch.bfloat16, "bonus": torch.bfloat16}},
        "bonus must be float32, got bfloat16",
    ),
}


_SHIFT_MIX = {
    "rank": ({"x": (2, 20, 6)}, "x must be (B, H, W, C), 4 dimensions, got 3"),
    "dtype": ({"dtypes": {"x": torch.int32}}, "x must be one of float64, float32, bfloat16, float16, got int32"),
    "one mix": ({"ratios": (6,)}, "ratios must be (K, C) with K = 1 to 8 and C = 6, got (6,)"),
    "channels": ({"ratios": (3, 5)}, "ratios must be (K, C) with K = 1 to 8 and C = 6, got (3, 5)"),
    "no mixes": ({"ratios": (0, 6)}, "ratios must be (K, C) with K = 1 to 8 and C = 6, got (0, 6)"),
    "too many": ({"ratios": (9, 6)}, "ratios must be (K, C) with K = 1 to 8 and C = 6, got (9, 6)"),
    "ratios dtype": ({"dtypes": {"ratios": torch.bfloat16}}, "ratios must be float32, got bfloat16"),
}


_LAYER_NORM = {
    "rank": ({"x": (5, 6)}, "x must be (B, N, C), 3 dimensions, got 2"),
    "integer": ({"dtypes": {"x": torch.int32}}, "x must be one of float64, float32, bfloat16, float16, got int32"),
    "weight": ({"weight": (5,)}, "weight must be (C,) with C = 6, got (5,)"),
    "weight's dtype": (
        {"dtypes": {"weight": torch.float16}},
        "weight must be in the dtype of x, float32, or of its sums, float32, got float16",
    ),
    "bias": ({"bias": (6, 1)}, "bias must be (C,) with C = 6, got (6, 1)"),
    "bias's dtype": ({"dtypes": {"bias": torch.float64}}, "bias must have the dtype of weight, float32, got float64"),
}

_CHANNEL_MIX = {
    "rank": ({"x_k": (2, 6)}, "x_k must be (B, N, C), 3 dimensions, got 2"),
    "dtype": ({"dtypes": {"x_k": torch.int32}}, "x_k must be one of float64, float32, bfloat16, float16, got int32"),
    "shape": ({"x_r": (2, 4, 6)}, "x_r must have the shape of x_k, (2, 5, 6), got (2, 4, 6)"),
    "key": ({"key": (8, 5)}, "key must be (M, C) with M of at least 1 and C = 6, got (8, 5)"),
    "no units": ({"key": (0, 6)}, "key must be (M, C) with M of at least 1 and C = 6, got (0, 6)"),
    "value": ({"value": (8, 6)}, "value must be (C, M) = (6, 8), got (8, 6)"),
    "receptance": ({"receptance": (6,)}, "receptance must be (C, C) = (6, 6), got (6,)"),
    "weights' dtype": ({"dtypes": {"value": torch.float16}}, "value must have the dtype of x_k, float32, got float16"),
}


def _refusals(call, tensors) -> tuple[str, str]:
    """What the op says with data and without."""
    texts = []
    for device in ("cpu", "meta"):
        with pytest.raises(ValueError, match="must") as caught:
            call(**{name: tensor.to(device) for name, tensor in tensors.items()})
        # torch appends where in its sources the check stands only to messages of other error classes
        texts.append(str(caught.value).split("\n", maxsplit=1)[0])
    return texts[0], texts[1]


@pytest.mark.parametrize(("changes", "message"), _ATTENTION.values(), ids=_ATTENTION)
@pytest.mark.parametrize("op", ["softmax_attention", "linear_attention"])
def test_bad_attention(op: str, changes: dict, message: str) -> None:
    with_data, without = _refusals(getattr(ops, op), _attention(**changes))
    assert with_data == without
    assert with_data.startswith(f"{op}: ")
    assert message in with_data


@pytest.mark.parametrize(("changes", "message"), _WKV.values(), ids=_WKV)
def test_bad_wkv(changes: dict, message: str) -> None:
    with_data, without = _refusals(ops.wkv, _wkv(**changes))
    assert with_data == without
    assert with_data.startswith("wkv: ")
    assert message in with_data


@pytest.mark.parametrize(("changes", "message"), _SHIFT_MIX.values(), ids=_SHIFT_MIX)
def test_bad_shift_mix(changes: dict, message: str) -> None:
    with_data, without = _refusals(ops.shift_mix, _shift_mix(**changes))
    assert with_data == without
    assert with_data.startswith("shift_mix: ")
    assert message in with_data


@pytest.mark.parametrize(("changes", "message"), _LAYER_NORM.values(), ids=_LAYER_NORM)
def test_bad_layer_norm(changes: dict, message: str) -> None:
    with_data, without = _refusals(ops.layer_norm, _layer_norm(**changes))
    assert with_data == without
    assert with_data.startswith("layer_norm: ")
    assert message in with_data


@pytest.mark.parametrize(("changes", "message"), _CHANNEL_MIX.values(), ids=_CHANNEL_MIX)
def test_bad_channel_mix(changes: dict, message: str) -> None:
    with_data, without = _refusals(ops.channel_mix, _channel_mix(**changes))
    assert with_data == without
    assert with_data.startswith("channel_mix: ")
    assert message in with_data


@pytest.mark.parametrize(
    ("grads", "message"),
    [
        ([(2, 4, 5, 6)], "grads must be one for each of the 3 ratios, got 1"),
        ([(2, 4, 5, 6)] * 2 + [(2, 4, 5, 5)], "grads must have the shape of x, (2, 4, 5, 6), got (2, 4, 5, 5)"),
    ],
    ids=["count", "shape"],
)
def test_bad_gradients_of_shift_mix(grads: list, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        torch.ops.sola.shift_mix_backward([torch.zeros(shape) for shape in grads], **_shift_mix())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature_map": "elu"}, "feature_map must be one of elu1, relu, identity, exp, got elu"),
        ({"feature_map": None}, "feature_map must be one of elu1, relu, identity, exp, got None"),
        ({"causal": True}, "k must have as many tokens as q with decay or causal, 5, got 7"),
        ({"decay": torch.ones(3)}, "k must have as many tokens as q with decay or causal, 5, got 7"),
    ],
    ids=["feature map", "no feature map", "causal", "decay"],
)
def test_bad_linear_options(options: dict, message: str) -> None:
    def call(**tensors):
        moved = {key: value.to(tensors["q"].device) if key == "decay" else value for key, value in options.items()}
        ops.linear_attention(**tensors, **moved)

    with_data, without = _refusals(call, _attention())
    assert with_data == without
    assert message in with_data


@pytest.mark.parametrize(
    ("decay", "message"),
    [
        (torch.ones(2), "decay must be (H,) with H = 3, got (2,)"),
        (torch.ones(3, dtype=torch.float64), "decay must be float32, got float64"),
    ],
    ids=["shape", "dtype"],
)
def test_bad_decay(decay: torch.Tensor, message: str) -> None:
    def call(**tensors):
        ops.linear_attention(**tensors, decay=decay.to(tensors["q"].device))

    with_data, without = _refusals(call, _attention(k=(2, 5, 3, 8), v=(2, 5, 3, 4)))
    assert with_data == without
    assert message in with_data


@pytest.mark.parametrize("value", [0.0, 1.5, -0.5, float("nan"), float("inf")])
def test_decay_outside_its_range(value: float) -> None:
    decay = torch.tensor([1.0, value, 0.5])
    with pytest.raises(ValueError, match=r"decay must be in \(0, 1\], got .* for head 1"):
        ops.linear_attention(**_attention(k=(2, 5, 3, 8), v=(2, 5, 3, 4)), decay=decay)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.softmax_attention(**{**_attention(), "q": None}), "softmax_attention: q .* got NoneType"),
        (lambda: ops.linear_attention(**{**_attention(), "v": [1.0]}), "linear_attention: v .* got list"),
        (lambda: ops.linear_attention(**_attention(), decay=0.9), "linear_attention: decay .* got float"),
        (lambda: ops.wkv(**{**_wkv(), "bonus": 0.3}), "wkv: bonus .* got float"),
        (lambda: ops.shift_mix(**{**_shift_mix(), "ratios": [0.3]}), "shift_mix: ratios .* got list"),
        (lambda: ops.layer_norm(**{**_layer_norm(), "weight": None}), "layer_norm: weight .* got NoneType"),
        (lambda: ops.channel_mix(**{**_channel_mix(), "value": 1.0}), "channel_mix: value .* got float"),
    ],
)
def test_what_is_no_tensor(call, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor(0.3, requires_grad=True), "must be a number, got a tensor, which would get no gradient; "),
        ("0.3", "must be a number, got str"),
    ],
)
def test_what_is_no_number(value, message: str) -> None:
    with pytest.raises(TypeError, match=f"softmax_attention: scale {message}"):
        ops.softmax_attention(**_attention(), scale=value)
    with pytest.raises(TypeError, match=f"linear_attention: eps {message}"):
        ops.linear_attention(**_attention(), eps=value)
    with pytest.raises(TypeError, match=f"layer_norm: eps {message}"):
        ops.layer_norm(**_layer_norm(), eps=value)


@pytest.mark.parametrize("scale", [2, -0.5, Fraction(1, 3)])
def test_a_scale_of_any_number(scale) -> None:
    inputs = _attention()
    assert torch.equal(
        ops.softmax_attention(**inputs, scale=scale), ops.softmax_attention(**inputs, scale=float(scale))
    )


def test_a_compiled_scale_may_change() -> None:
    inputs = _attention()
    compiled = torch.compile(ops.softmax_attention, backend="eager", fullgraph=True, dynamic=True)
    for scale in (0.1, 0.2, 3):
        assert torch.equal(compiled(**inputs, scale=scale), ops.softmax_attention(**inputs, scale=scale))


def test_bad_decay_per() -> None:
    with pytest.raises(ValueError, match="decay_per must be one of sequence, token, got image"):
        ops.wkv(**_wkv(), decay_per="image")


@pytest.mark.parametrize("op", ["softmax_attention", "linear_attention"])
def test_mixed_devices(op: str) -> None:
    tensors = _attention()
    tensors["v"] = tensors["v"].to("meta")
    with pytest.raises((ValueError, RuntimeError), match="v must be on the device of q, cpu, got meta"):
        getattr(ops, op)(**tensors)


@pytest.mark.parametrize("key", ["XPU", "MPS"])
def test_a_device_without_kernels_is_named(key: str) -> None:
    """Sent to a device's kernels by hand, with a tensor that is not on the CPU."""
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    arguments = [tensor.to("meta") for tensor in _wkv().values()]
    with pytest.raises(ValueError, match="wkv: k must be on cpu, got meta; this build has no kernels there"):
        torch.ops.sola.wkv.default.redispatch(keys, *arguments, False)
