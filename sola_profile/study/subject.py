"""The backbone that a study or a placement is about: a preset, or one of the user's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sola_profile.case import read_spec, written_out
from sola_profile.source import FACTORY, BuildError, ModelSource, read_source
from sola_vision.presets import get_spec
from sola_vision.spec import BackboneSpec

if TYPE_CHECKING:
    from torch import nn

    from sola_profile.study.weights import Weights
    from sola_vision.backbone import Backbone


@dataclass(frozen=True)
class Subject:
    """A backbone by name.

    ``name``: as it was asked for. ``base``: the spec with all its bridges, and ``spec``: the same under the pattern that was
    asked for. ``made``: what a factory gave, weights and all; None for a preset.
    """

    name: str
    base: BackboneSpec
    spec: BackboneSpec
    made: Backbone | None = None

    @property
    def source(self) -> str:
        """The factory, or an empty string for a preset."""
        return "" if self.made is None else self.name

    def model(self, weights: Path | None = None) -> tuple[Backbone, Weights]:
        """The model to be studied and where its weights come from: a file, a factory, or nowhere.

        Weights of a factory are those of its own pattern. Raises ``ValueError`` when a file doesn't fit.
        """
        from sola_profile.study.weights import Weights, fresh_model, with_weights

        if weights is not None:
            return with_weights(self.spec, weights)
        if self.made is None or self.spec.pattern != self.base.pattern:
            return fresh_model(self.spec), Weights()
        return self.made, Weights(self.name, given=True)


def read_subject(model: str, pattern: str | None = None) -> Subject:
    """Read ``sola_t``, ``sola_t[PATTERN]`` or ``package.module:factory``, under another pattern if one is given.

    The factory gives a ``Backbone`` or a ``BackboneSpec``, with any mixers. Raises ``ValueError`` that names what came and
    what is needed.
    """
    source = read_source(model) if ":" in model else None
    if source is None:
        try:
            spec = read_spec(model, pattern)
        except ValueError as error:
            hint = "; package.module:factory works too" if "no preset is named" in str(error) else ""
            raise ValueError(f"{error}{hint}") from error
        # the preset itself, so that a pattern gets back the bridges that fit it
        return Subject(model, get_spec(spec.name.partition("[")[0]), spec)
    if source.kind != FACTORY:
        raise ValueError(_refusal(model, "isn't one"))
    made = _built(source)
    base = made.spec
    spec = base
    if pattern is not None:
        changed = base.with_pattern(written_out(pattern, base))
        spec = replace(changed, name=f"{base.name}[{changed.pattern}]")
    return Subject(model, base, spec, made)


def _built(source: ModelSource) -> Backbone:
    import torch

    from sola_profile.workload import SEED
    from sola_vision.backbone import Backbone

    # a factory that draws fresh weights gives the same ones every time
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        try:
            made = source.build()
        except BuildError:
            raise
        except Exception as error:
            raise BuildError(f"model: {source.name} can't be built: {type(error).__name__}: {error}") from error
    if not isinstance(made, Backbone):
        raise BuildError(_refusal(source.name, f"gave {type(made).__name__}{inner_backbone(made)}"))
    return made


def inner_backbone(module: nn.Module) -> str:
    """Where in a module there is a backbone, for an error; empty where there is none."""
    from sola_vision.backbone import Backbone

    found = next((name for name, each in module.named_modules() if isinstance(each, Backbone)), None)
    return "" if found is None else f", whose part {found!r} is one: give that"


def _refusal(name: str, what: str) -> str:
    return (
        f"model: expected a Backbone of sola_vision, whose spec says by what mixer every layer moves information; {name} {what}. "
        "A preset such as sola_t works, and package.module:factory that gives a Backbone or a BackboneSpec"
    )
