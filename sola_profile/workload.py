"""From a case to something that runs: the model, an image batch and one step, on any device including ``meta``.

The cost models and the measurements share this step, so both speak of the same work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sola_profile.case import Resolution, Settings
from sola_profile.peers.swap import operators_on
from sola_profile.source import BuildError, InputShape, ModelSource
from sola_vision.spec import BackboneSpec

Step = Callable[[], None]

# whether a model without data makes tensors that must have none either
_NEEDS_META: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()

# weights and pixels are random; the seed keeps two runs of one command comparable
SEED = 0


class NoCheckpointsError(BuildError):
    """Checkpointing of a model that has no way to switch it on."""


@dataclass(frozen=True)
class Workload:
    """A model on its device, with the settings it runs under and the shape of what it takes."""

    model: nn.Module
    source: ModelSource
    shape: InputShape
    settings: Settings
    device: torch.device
    optimizer: torch.optim.Optimizer | None = None

    def image(self, resolution: Resolution) -> Tensor:
        """Random pixels in the dtype and on the device of the model."""
        shape = self.shape.at(resolution.height, resolution.width)
        dtype = getattr(torch, self.settings.dtype)
        if self.device.type == "meta":
            return torch.empty(shape, dtype=dtype, device=self.device)
        generator = torch.Generator().manual_seed(SEED)
        return torch.randn(shape, generator=generator).to(self.device, dtype)

    def step(self, image: Tensor) -> Step:
        """One step: forward under ``inference_mode``, or forward, backward and the optimizer.

        On meta it has the operators of the place that the settings name.
        """
        train = self.settings.mode == "train"
        step = training_step(self.model, image, self.optimizer) if train else inference_step(self.model, image)
        if self.device.type != "meta":
            return step
        place = self.place(image)

        def placed() -> None:
            with operators_on(self.settings.device_type), place:
                step()

        return placed

    def place(self, image: Tensor) -> AbstractContextManager[object]:
        """Where tensors go that a model without data makes and names no device for.

        To the CPU, where a model may look at them, unless only the meta device lets it pass; tried once for a model.
        """
        if self.device.type != "meta" or self.source.spec is not None:
            return nullcontext()
        if self.model not in _NEEDS_META:
            passed = next((place for place in (False, True) if self._passes(image, on_meta=place)), None)
            if passed is None:
                # the step will say why
                return nullcontext()
            _NEEDS_META[self.model] = passed
        return self.device if _NEEDS_META[self.model] else nullcontext()

    def _passes(self, image: Tensor, *, on_meta: bool) -> bool:
        place = self.device if on_meta else nullcontext()
        try:
            with torch.no_grad(), operators_on(self.settings.device_type), place:
                self.model(image)
        except Exception:
            return False
        return True


def build(
    model: ModelSource | BackboneSpec,
    settings: Settings,
    device: str | None = None,
    *,
    shape: InputShape | None = None,
    resolution: Resolution | None = None,
) -> Workload:
    """The model with random weights, in the mode, dtype and place that the settings name.

    ``device`` overrides the place; ``meta`` gives a model without data, never compiled. ``shape``: of its input, whose
    batch the settings give. ``resolution``: for a model that has to be built for every size anew.
    """
    source = ModelSource.of(model) if isinstance(model, BackboneSpec) else model
    place = torch.device(settings.device if device is None else device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        module = _module(source, resolution, place)
    if settings.checkpointing:
        _switch_on_checkpointing(module, source)
    module = module.to(device=place, dtype=getattr(torch, settings.dtype))
    module.train(settings.mode == "train")
    if settings.compile and place.type != "meta":
        module = cast(nn.Module, torch.compile(module))
    taken = (shape or source.default_input).with_batch(settings.batch)
    return Workload(module, source, taken, settings, place, _optimizer(module, settings.optimizer))


def _optimizer(module: nn.Module, name: str) -> torch.optim.Optimizer | None:
    """One that does all its work and changes no weight, so that every step is like the first."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if name == "sgd":
        return torch.optim.SGD(trained, lr=0.0, momentum=0.9)
    return torch.optim.AdamW(trained, lr=0.0) if name == "adamw" else None


def _switch_on_checkpointing(module: nn.Module, source: ModelSource) -> None:
    """Through the method that our backbones and timm's models have."""
    switch = getattr(module, "set_grad_checkpointing", None)
    if switch is None:
        raise NoCheckpointsError(
            f"checkpointing: {source.name} has no method set_grad_checkpointing, as presets and most models of timm have it"
        )
    switch(True)


def _module(source: ModelSource, resolution: Resolution | None, place: torch.device) -> nn.Module:
    if place.type != "meta":
        return source.build(resolution)
    try:
        with place:
            return source.build(resolution)
    except Exception:
        # some constructors look at numbers, which need real weights
        return source.build(resolution)


def inference_step(model: nn.Module, image: Tensor) -> Step:
    """A forward pass whose output is dropped."""

    def step() -> None:
        with torch.inference_mode():
            model(image)

    return step


def training_step(model: nn.Module, image: Tensor, optimizer: torch.optim.Optimizer | None = None) -> Step:
    """Forward and backward of the summed output, then the optimizer; the gradients are dropped at the end."""

    def step() -> None:
        outputs = [leaf for leaf in tree_leaves(model(image)) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if not outputs:
            raise ValueError("mode: nothing that the model gives has a gradient, so it can't train")
        sum((output.sum() for output in outputs[1:]), start=outputs[0].sum()).backward()
        if optimizer is not None:
            optimizer.step()
        for parameter in model.parameters():
            parameter.grad = None

    return step


@contextmanager
def cpu_threads(threads: int | None) -> Iterator[int]:
    """Run with this many threads in PyTorch's operators, then put the old number back; yields the number in use."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
