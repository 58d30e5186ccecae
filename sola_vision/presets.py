"""Name → spec, as a table.

The widths and depths of S and B are not published; these fit the published parameters and MACs within 3 %
(``tests/test_presets.py`` prints both). Published: SoLA-Vision, arXiv 2601.11164, Table 3, where GFLOPs are MACs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from sola_vision.spec import BackboneSpec, Bridge, MixerSpec
from sola_vision.suggest import did_you_mean


@dataclass(frozen=True)
class Published:
    """What a paper reports for a model at 224 × 224: parameters, multiply-accumulates, ImageNet-1K top-1."""

    params_m: float
    gmacs: float
    top1: float


# the wiring drawn in the paper's Fig. 4 for SoLA-T; B has 16 layers in stage 3, where 3.6 is a softmax layer too
_BRIDGES = tuple(Bridge.of(wire) for wire in ("1.2->3.3", "2.2->3.6", "3.2->4.2"))

_SIZES: Mapping[str, BackboneSpec] = {
    spec.name: spec
    for spec in (
        BackboneSpec("sola_t", (96, 128, 192, 288), "LL|LL|LLSLLS|LS", bridges=_BRIDGES),
        BackboneSpec("sola_s", (128, 192, 384, 768), "LL|LL|LLSLLS|LS", bridges=_BRIDGES),
        BackboneSpec("sola_b", (128, 224, 512, 1024), "LL|LL|LLSLLSLLSLLSLLSL|LS", bridges=_BRIDGES),
    )
}

PUBLISHED: Mapping[str, Published] = {
    "sola_t": Published(params_m=6.59, gmacs=1.89, top1=79.8),
    "sola_s": Published(params_m=30.69, gmacs=5.43, top1=82.9),
    "sola_b": Published(params_m=88.26, gmacs=14.96, top1=84.1),
}


def _tail(depth: int) -> str:
    return "L" * (depth - depth // 2) + "S" * (depth // 2)


# the neighbours: where other families put their softmax layers, on the same widths and depths
_VARIANTS: Mapping[str, Callable[[tuple[int, ...]], str]] = {
    # every layer linear, every layer softmax
    "linear": lambda depths: "|".join("L" * depth for depth in depths),
    "softmax": lambda depths: "|".join("S" * depth for depth in depths),
    # last stage only, as VSSD (arXiv 2407.18559)
    "llls": lambda depths: "|".join(letter * depth for letter, depth in zip("LLLS", depths, strict=True)),
    # last two stages, as RAVLT (arXiv 2411.07635) and FLatten (arXiv 2308.00442)
    "llss": lambda depths: "|".join(letter * depth for letter, depth in zip("LLSS", depths, strict=True)),
    # last half of stages 3 and 4, as MambaVision (arXiv 2407.08083)
    "lasthalf": lambda depths: "|".join(["L" * d for d in depths[:2]] + [_tail(d) for d in depths[2:]]),
}


def neighbours(depths: tuple[int, ...]) -> dict[str, str]:
    """Where other families put their softmax layers, for so many layers per stage: suffix of a preset → pattern."""
    return {suffix: pattern(depths) for suffix, pattern in _VARIANTS.items()}


def _table() -> dict[str, BackboneSpec]:
    table = dict(_SIZES)
    for base in _SIZES.values():
        for suffix, pattern in neighbours(base.depths).items():
            name = f"{base.name}_{suffix}"
            table[name] = base.with_pattern(pattern, name=name)
    return table


PRESETS: Mapping[str, BackboneSpec] = _table()


def list_models(prefix: str = "") -> list[str]:
    """The names of all presets that start with ``prefix``."""
    return [name for name in PRESETS if name.startswith(prefix)]


def get_spec(name: str) -> BackboneSpec:
    """The spec of a preset; raises ``ValueError`` that suggests the nearest name."""
    if name in PRESETS:
        return PRESETS[name]
    raise ValueError(f"model: no preset is named {name!r}{did_you_mean(name, PRESETS)}")


def twins(spec: BackboneSpec) -> dict[str, BackboneSpec]:
    """The same widths and depths with every layer linear, and with every layer softmax.

    "Linear" is the first letter whose mixer is not softmax, "softmax" the letter whose mixer is; a spec that has
    no softmax mixer, or nothing else, gets the paper's.
    """
    mixers = dict(spec.mixers)
    linear = next((letter for letter, mixer in mixers.items() if mixer.name != "softmax"), None)
    softmax = next((letter for letter, mixer in mixers.items() if mixer.name == "softmax"), None)
    defaults = _SIZES["sola_t"].mixers
    linear = linear or _free_letter("L", mixers, defaults["L"])
    softmax = softmax or _free_letter("S", mixers, defaults["S"])
    both = replace(spec, mixers=mixers)
    return {
        kind: both.with_pattern("|".join(letter * depth for depth in spec.depths), name=f"{spec.name}_{kind}")
        for kind, letter in (("linear", linear), ("softmax", softmax))
    }


def _free_letter(wanted: str, mixers: dict[str, MixerSpec], mixer: MixerSpec) -> str:
    letter = next(c for c in wanted + "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in mixers)
    mixers[letter] = mixer
    return letter
