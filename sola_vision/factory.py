"""Models by name, and their weights in and out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from sola_vision.backbone import Backbone
from sola_vision.files import check_regular, write_whole
from sola_vision.layers.mixers import mixer_options
from sola_vision.presets import get_spec
from sola_vision.spec import BackboneSpec, read_bridges

# names listed in an error before the rest is only counted
_SHOWN_PROBLEMS = 12


def create_model(
    model: str | BackboneSpec,
    *,
    num_classes: int | None = None,
    pattern: str | None = None,
    mixers: Mapping[str, Any] | None = None,
    bridges: Iterable[Any] | None = None,
    drop_path: float | None = None,
    in_channels: int | None = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
) -> Backbone:
    """Build a backbone with fresh weights; what isn't given stays as the model has it.

    Args:
        model: a name from ``list_models()`` or a ``BackboneSpec``.
        num_classes: width of the classifier; 0 returns pooled features.
        pattern: another pattern for the same depths, such as ``"L*2|L*2|(LLS)*2|LS"``.
        mixers: letter → mixer name, ``(name, options)`` or ``MixerSpec``, replacing or adding letters.
        bridges: Hidden State Bridges such as ``"1.2->3.3"``; every one must fit. When they are not given, those of
            the model are kept as far as they fit the pattern and the mixers.
        drop_path: stochastic-depth rate of the last layer, rising linearly from 0.
        in_channels: channels of the image.
        features_only: return the four stages' feature maps instead of scores.
        out_indices: with ``features_only``, only the maps of these stages, counted from 0, or of the last n.

    Raises:
        TypeError: ``model`` is neither.
        ValueError: names the argument, what came and what is allowed; a pattern that can't be read points at the
            character, an unknown name suggests the nearest.

    """
    spec = get_spec(model) if isinstance(model, str) else model
    if not isinstance(spec, BackboneSpec):
        raise TypeError(f"model: expected a name or a BackboneSpec, got {type(model).__name__}")
    if pattern is not None or mixers is not None:
        spec = spec.rewired(pattern=pattern, mixers=mixers)
    given = {"num_classes": num_classes, "drop_path": drop_path, "in_channels": in_channels}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if bridges is not None:
        changes["bridges"] = read_bridges(bridges)
    spec = replace(spec, **changes)
    for mixer in spec.mixers.values():
        mixer_options(mixer, spec)
    return Backbone(spec, features_only=features_only, out_indices=out_indices)


def save_weights(model: Backbone, path: str | Path) -> None:
    """Write the weights as safetensors, with the spec's name, pattern, mixers and bridges as metadata.

    The file is written beside ``path`` under a name of its own and then moved, so that it is whole whenever it is read, also
    where a save is interrupted or several write to one path. Where ``path`` is a link, the file that it leads to is
    written. Tied weights are written under each of their names, and those of a compiled model under the names that
    they have without ``torch.compile``.

    Raises:
        TypeError: ``model`` is no backbone but a wrapper of one, say; names the module to pass.
        ValueError: ``path`` is a folder, a pipe or a device, or a weight has no numbers to write: it is on meta, sharded,
            quantised or sparse.
        OSError: the file can't be written.

    """
    from safetensors.torch import save

    backbone, path = _backbone(model), Path(path)
    check_regular(path)
    tensors = _apart(_state(backbone))
    write_whole(path, _in_order(save(tensors, metadata=describe(backbone.spec))))


def _backbone(model: object) -> Backbone:
    """The backbone itself where ``torch.compile`` wraps it."""
    backbone = getattr(model, "_orig_mod", model)
    if isinstance(backbone, Backbone):
        return backbone
    inner = model.named_modules() if isinstance(model, nn.Module) else ()
    name = next((name for name, module in inner if isinstance(module, Backbone)), None)
    which = "the backbone itself" if name is None else f"its .{name}"
    raise TypeError(f"model: expected a Backbone, as create_model returns it, got {type(model).__name__}; pass {which}")


def _state(backbone: Backbone) -> dict[str, Any]:
    """Its weights; those of layers that are compiled by themselves have the names of plain ones."""
    return {name.replace("_orig_mod.", ""): value for name, value in backbone.state_dict().items()}


def _apart(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights in tensors that share no memory, as the format wants them."""
    for name, value in state.items():
        if refusal := _not_writable(value):
            raise ValueError(f"model: {name}: expected a plain tensor, got {refusal}")
    tensors, seen = {}, set()
    for name, value in state.items():
        tensor = value.detach().contiguous()
        place = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return tensors


def _not_writable(value: Any) -> str:
    """What a weight is that can't be written, with what to do; empty for one that can."""
    kind: object = type(value).__name__
    if not isinstance(value, Tensor):
        return f"{kind}; torch.save keeps what is no tensor"
    if value.is_meta:
        return "one on meta, without memory; call model.to_empty(device=...) and set its weights first"
    if hasattr(value, "full_tensor"):
        return (
            f"{kind}; gather the weights by its full_tensor() or by get_model_state_dict(model, "
            "options=StateDictOptions(full_state_dict=True)), and save a model that isn't sharded with them"
        )
    if value.is_quantized or value.layout is not torch.strided:
        kind = value.dtype if value.is_quantized else value.layout
    elif not (isinstance(value, FakeTensor) or is_traceable_wrapper_subclass(value)):
        return ""
    return f"{kind}; save the weights that it was made from, or use torch.save"


def _in_order(content: bytes) -> bytes:
    """A safetensors file with its metadata sorted: they come in an order of chance, and the same weights give one file."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    # the numbers begin at a multiple of 8 bytes
    text = text.ljust(-(-len(text) // 8) * 8)
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(content)[start:]))


def load_weights(model: Backbone, path: str | Path, *, strict: bool = True) -> list[str]:
    """Read weights written by ``save_weights`` into a model, casting to its dtype and device.

    Returns the names that were left as they were, in the model or in the file: none when ``strict``, else those
    that are missing, unexpected or of another shape, such as a classifier of other width. A compiled model takes the
    file of a plain one.

    Raises:
        TypeError: ``model`` is no backbone but a wrapper of one, say; names the module to pass.
        ValueError: the file holds other names or shapes and ``strict``, integer or complex numbers for floating-point
            weights, or numbers beyond the range of the model's dtype; or it isn't safetensors but a folder or a pipe,
            say; or the model is on meta, sharded or quantised. Nothing is loaded.
        OSError: the file can't be read.

    """
    backbone = _backbone(model)
    own = _state(backbone)
    _check_loadable(own)
    metadata, saved = _read(Path(path))
    problems = _mismatches(own, saved)
    if problems and strict:
        raise ValueError(_refusal(backbone.spec, metadata, path, problems))
    loaded = own.keys() - problems.keys()
    for key in sorted(loaded):
        if refusal := _not_castable(saved[key], own[key].dtype):
            raise ValueError(f"path: {key} in {path}: {refusal}")
    with torch.no_grad():
        for key in loaded:
            own[key].copy_(saved[key])
    return sorted(problems)


def _check_loadable(own: Mapping[str, Any]) -> None:
    for key, value in own.items():
        if isinstance(value, Tensor) and value.is_meta:
            raise ValueError("model: its weights are on meta, without memory; call model.to_empty(device=...) first")
        if not isinstance(value, Tensor) or value.is_quantized or is_traceable_wrapper_subclass(value):
            kind = type(value).__name__
            raise ValueError(f"model: {key}: expected a plain tensor, got {kind}; load before sharding or quantising")


def _read(path: Path) -> tuple[Mapping[str, str], dict[str, Tensor]]:
    """Metadata and weights of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    check_regular(path)
    # for the system's own error, since safetensors calls every file that it can't open a missing one
    path.open("rb").close()
    try:
        with safe_open(str(path), framework="pt") as file:
            return file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  no mapping
    except SafetensorError as error:
        raise ValueError(f"path: {path} is no safetensors file: {error}") from error


def _not_castable(saved: Tensor, dtype: torch.dtype) -> str:
    """Why a model's dtype can't take the numbers of a file; empty where it can."""
    if (saved.is_floating_point(), saved.is_complex()) != (dtype.is_floating_point, dtype.is_complex):
        kind = "floating-point numbers" if dtype.is_floating_point else str(dtype)
        return f"expected {kind}, got {saved.dtype}"
    if not dtype.is_floating_point or torch.finfo(dtype).max >= torch.finfo(saved.dtype).max:
        return ""
    beyond = saved.isfinite() & ~saved.to(dtype).to(saved.dtype).isfinite()
    if not beyond.any():
        return ""
    largest = float(saved[beyond].abs().max())
    return f"expected at most {torch.finfo(dtype).max:g}, the range of {dtype}, got {largest:g}"


def describe(spec: BackboneSpec) -> dict[str, str]:
    """What a weight file says about the model it belongs to."""
    return {
        "name": spec.name,
        "pattern": spec.pattern,
        "mixers": ", ".join(f"{letter}={mixer}" for letter, mixer in spec.mixers.items()),
        "bridges": ", ".join(map(str, spec.bridges)),
    }


def _mismatches(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> dict[str, str]:
    problems = {key: "missing in the file" for key in own if key not in saved}
    problems.update({key: "not in the model" for key in saved if key not in own})
    for key in own.keys() & saved.keys():
        if own[key].shape != saved[key].shape:
            problems[key] = f"{tuple(saved[key].shape)} in the file, {tuple(own[key].shape)} in the model"
    return problems


def _refusal(spec: BackboneSpec, metadata: Mapping[str, str], path: str | Path, problems: Mapping[str, str]) -> str:
    lines = [f"path: the weights in {path} don't fit {spec.name}:"]
    lines += [
        f"  {field}: {metadata[field]!r} in the file, {value!r} in the model"
        for field, value in describe(spec).items()
        if metadata.get(field, value) != value
    ]
    shown = sorted(problems)[:_SHOWN_PROBLEMS]
    lines += [f"  {key}: {problems[key]}" for key in shown]
    if len(problems) > len(shown):
        lines.append(f"  and {len(problems) - len(shown)} more")
    if all(key.startswith("head.") for key in problems):
        lines.append("strict=False loads all but these")
    return "\n".join(lines)
