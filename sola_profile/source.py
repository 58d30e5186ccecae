"""Where a model comes from: a preset, timm, torchvision or a factory of the user's own. Torch-free until it is built."""

from __future__ import annotations

import copy
import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sola_profile.case import Resolution, nearest, read_spec
from sola_vision.presets import list_models
from sola_vision.spec import BackboneSpec

if TYPE_CHECKING:
    from torch import nn

PRESET, TIMM, TORCHVISION, FACTORY = "preset", "timm", "torchvision", "factory"

HEIGHT, WIDTH = "H", "W"
DEFAULT_INPUT = "1x3xHxW"

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


class BuildError(ValueError):
    """A model that can't be built: its factory failed, or gave something else than a module."""


@dataclass(frozen=True)
class InputShape:
    """Shape of the tensor that a model takes, with the letters H and W where the image's sides go.

    ``dims``: one entry per dimension, a number or a letter; the first is the batch.
    """

    dims: tuple[int | str, ...] = (1, 3, HEIGHT, WIDTH)

    @classmethod
    def parse(cls, text: str) -> InputShape:
        """Read ``1x3xHxW``; raises ``ValueError`` unless H and W stand there once each and the rest are numbers."""
        parts = text.strip().split("x")
        if not all(part in (HEIGHT, WIDTH) or (part.isdigit() and int(part) > 0) for part in parts):
            raise ValueError(f"expected a shape such as {DEFAULT_INPUT}, got {text.strip()!r}")
        if parts.count(HEIGHT) != 1 or parts.count(WIDTH) != 1:
            raise ValueError(f"expected the letters H and W once each, as in {DEFAULT_INPUT}, got {text.strip()!r}")
        if parts[0] in (HEIGHT, WIDTH):
            raise ValueError(f"expected the batch first, as in {DEFAULT_INPUT}, got {text.strip()!r}")
        return cls(tuple(part if part in (HEIGHT, WIDTH) else int(part) for part in parts))

    @property
    def batch(self) -> int:
        """Images per step."""
        return int(self.dims[0])

    def with_batch(self, batch: int) -> InputShape:
        """The same for so many images."""
        return InputShape((batch, *self.dims[1:]))

    def at(self, height: Any, width: Any) -> tuple[Any, ...]:
        """The shape for an image of so many rows and columns."""
        sides = {HEIGHT: height, WIDTH: width}
        return tuple(sides[dim] if isinstance(dim, str) else dim for dim in self.dims)

    def __str__(self) -> str:
        return "x".join(map(str, self.dims))


@dataclass(frozen=True)
class ModelSource:
    """A model by name. ``kind``: ``preset``, ``timm``, ``torchvision`` or ``factory``.

    ``spec``: of a backbone that is given as one, by a preset's name or itself; None for what a factory is yet to make.
    ``made``: the module or factory itself, where it was handed over instead of named.
    """

    name: str
    kind: str
    spec: BackboneSpec | None = None
    made: Any = None

    @classmethod
    def of(cls, spec: BackboneSpec) -> ModelSource:
        """The source of a backbone."""
        return cls(spec.name, PRESET, spec)

    @property
    def default_input(self) -> InputShape:
        """What the model takes when nobody says: one image, with the channels of a backbone or three."""
        channels = 3 if self.spec is None else self.spec.in_channels
        return InputShape((1, channels, HEIGHT, WIDTH))

    def check_input(self, shape: InputShape | None) -> None:
        """Raise ``ValueError`` where a backbone of ours doesn't take the shape; of other models nothing is known."""
        taken = self.default_input
        if self.spec is not None and shape is not None and shape.dims[1:] != taken.dims[1:]:
            raise ValueError(f"{self.name} takes {taken.with_batch(shape.batch)}, got {shape}")

    @property
    def called(self) -> str:
        """The name behind the prefix: ``resnet18`` of ``timm:resnet18``."""
        return self.name.partition(":")[2] if self.kind in (TIMM, TORCHVISION) else self.name

    def build(self, resolution: Resolution | None = None) -> nn.Module:
        """The model with fresh weights in evaluation mode.

        ``resolution``: for models of timm whose position tables or windows are fixed when they are built; None gives
        one that takes any size, where timm has a way to. Raises ``BuildError`` when the factory doesn't give a module.
        """
        return _BUILDERS[self.kind](self, resolution).eval()


def read_source(text: str, pattern: str | None = None) -> ModelSource:
    """Read ``sola_t``, ``timm:resnet18``, ``torchvision:resnet18`` or ``package.module:factory``.

    ``pattern``: another layer pattern, for presets only. Raises ``ValueError`` that names the mistake.
    """
    prefix, colon, name = text.partition(":")
    if not colon:
        return ModelSource.of(_preset(text, pattern))
    if pattern is not None:
        raise ValueError(f"--pattern changes the layers of a preset; {text!r} is none")
    if prefix in (TIMM, TORCHVISION):
        _check_zoo_name(prefix, name)
        return ModelSource(text, prefix)
    if _FACTORY.fullmatch(text) is None:
        raise ValueError(f"model: expected package.module:factory, got {text!r}")
    source = ModelSource(text, FACTORY)
    found = _factory(source)
    return replace(source, spec=found) if isinstance(found, BackboneSpec) else source


def _preset(name: str, pattern: str | None) -> BackboneSpec:
    try:
        return read_spec(name, pattern)
    except ValueError as error:
        if name.partition("[")[0] in list_models():
            raise
        # perhaps a name of timm's without its prefix
        raise ValueError(f"{error}; timm:NAME, torchvision:NAME and package.module:factory work too") from error


def _check_zoo_name(package: str, name: str) -> None:
    known = _LISTS[package](_package(package))
    if name not in known:
        raise ValueError(f"model: {package} has no model {name!r}{nearest(name, known)}")


def _package(name: str) -> ModuleType:
    """Import timm or ``torchvision.models``; a ``ValueError`` says what to install or what is broken."""
    path = "torchvision.models" if name == TORCHVISION else name
    try:
        try:
            return importlib.import_module(path)
        except RuntimeError as error:
            if "torchvision::nms" not in str(error):
                raise
            _declare_detection_operators()
            return importlib.import_module(path)
    except ImportError as error:
        missing = getattr(error, "name", None) or name
        raise ValueError(f"{name}:NAME needs {name}, and {missing} isn't installed; pip install {name}") from error
    except RuntimeError as error:
        raise ValueError(f"{name} doesn't load beside this torch: {error}; install the torchvision of it") from error


# a library's operators live as long as it does
_DECLARED: list[Any] = []


def _declare_detection_operators() -> None:
    """Name two operators of torchvision's that its file for another build of torch couldn't bring, without kernels.

    torchvision refuses to load when they are missing, and so does timm, though only detectors ever call them.
    """
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _DECLARED.append(library)


def _build_preset(source: ModelSource, _: Resolution | None) -> nn.Module:
    from sola_vision import create_model

    assert source.spec is not None
    return create_model(source.spec)


def _build_timm(source: ModelSource, resolution: Resolution | None) -> nn.Module:
    create: Callable[..., nn.Module] = _package(TIMM).create_model
    sized: Mapping[str, Any] = {"dynamic_img_size": True}
    if resolution is not None:
        sized = {"img_size": (resolution.height, resolution.width)}
    try:
        return create(source.called, **sized)
    except (TypeError, AssertionError):
        # most convolutional models know neither word, and take any size as they are
        return create(source.called)


def _build_torchvision(source: ModelSource, resolution: Resolution | None) -> nn.Module:
    models = _package(TORCHVISION)
    square = resolution is not None and resolution.height == resolution.width
    builder = models.get_model_builder(source.called)
    # its vision transformers take one square size, fixed when they are built
    sized = {"image_size": resolution.height} if square and resolution and source.called.startswith("vit_") else {}
    # models on a backbone fetch its weights unless told otherwise
    weights = [name for name in ("weights", "weights_backbone") if name in inspect.signature(builder).parameters]
    model: nn.Module = builder(**dict.fromkeys(weights), **sized)
    return model


def _factory(source: ModelSource) -> Any:
    module_name, _, path = source.name.partition(":")
    # like other commands that take a factory, look in the current folder first
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        hint = nearest(source.name, list_models()) if error.name == module_name else ""
        raise ValueError(f"model: can't import {module_name!r} ({error}){hint}") from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"model: importing {module_name!r} failed{_what(error)}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise ValueError(f"model: {module_name} has no {path!r}{nearest(part, dir(found))}")
        found = getattr(found, part)
    return found


def _build_factory(source: ModelSource, resolution: Resolution | None) -> nn.Module:
    from torch import nn

    made = _factory(source) if source.made is None else source.made
    if isinstance(made, nn.Module):
        # a module of the user's own keeps its mode and its weights
        made = copy.deepcopy(made)
    elif callable(made):
        made = _called(source.name, made, resolution)
    if isinstance(made, BackboneSpec):
        from sola_vision import create_model

        made = create_model(made)
    if not isinstance(made, nn.Module):
        raise BuildError(f"model: {source.name} gave {type(made).__name__}, not a torch.nn.Module or a BackboneSpec")
    return made


def _called(name: str, factory: Callable[..., Any], resolution: Resolution | None) -> Any:
    """What a factory gives when it is called, with ``img_size`` where it takes that."""
    sized = {}
    try:
        parameters = inspect.signature(factory)
        if resolution is not None and "img_size" in parameters.parameters:
            sized = {"img_size": (resolution.height, resolution.width)}
        parameters.bind(**sized)
    except TypeError as error:
        raise BuildError(
            f"model: {name} can't be built without arguments ({error}); expected a factory that takes none, or img_size"
        ) from error
    except ValueError:
        # of a function written in C nothing is known before it is called
        pass
    try:
        return factory(**sized)
    except SystemExit as error:
        raise BuildError(f"model: {name} can't be built{_what(error)}") from error


def _what(error: BaseException) -> str:
    """An error of the user's code at the end of a message: its kind, what it says and where it was raised."""
    if isinstance(error, SystemExit):
        return f": it ended the process with status {error}"
    said = f": {type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):
        # which says itself where it is
        return said
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{said} ({place.filename}:{place.lineno})"


_BUILDERS: Mapping[str, Callable[[ModelSource, Resolution | None], nn.Module]] = {
    PRESET: _build_preset,
    TIMM: _build_timm,
    TORCHVISION: _build_torchvision,
    FACTORY: _build_factory,
}
_LISTS: Mapping[str, Callable[[Any], list[str]]] = {
    TIMM: lambda timm: list(timm.list_models()),
    TORCHVISION: lambda models: list(models.list_models()),
}
