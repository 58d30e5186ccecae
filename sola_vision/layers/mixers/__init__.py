"""Token mixers by name.

A new mixer is one file with a subclass of ``Mixer`` and one line in ``MIXERS``; ``docs/adding-a-mixer.md`` walks
through an example. A mixer is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from sola_vision.spec import BackboneSpec, MixerSpec, check_flag
from sola_vision.suggest import did_you_mean

if TYPE_CHECKING:
    from sola_vision.layers.mixers.base import Mixer

MIXERS = {
    "wkv": "sola_vision.layers.mixers.wkv:WKV",
    "softmax": "sola_vision.layers.mixers.softmax:SoftmaxAttention",
    "linear": "sola_vision.layers.mixers.linear:LinearAttention",
    "decay": "sola_vision.layers.mixers.decay:DecayAttention",
}


def list_mixers() -> list[str]:
    """The names a pattern's letters may stand for."""
    return list(MIXERS)


def mixer_class(name: str) -> type[Mixer]:
    """The class behind a name; raises ``ValueError`` that suggests the nearest name."""
    if name not in MIXERS:
        raise ValueError(f"mixers: no mixer is named {name!r}{did_you_mean(name, MIXERS)}")
    module, _, attribute = MIXERS[name].partition(":")
    found: type[Mixer] = getattr(importlib.import_module(module), attribute)
    return found


def mixer_options(mixer: MixerSpec, spec: BackboneSpec) -> dict[str, Any]:
    """The keyword arguments this mixer is built with in this backbone.

    Its own options, and ``spec.shift`` for a mixer that takes ``shift`` and isn't told otherwise. Raises
    ``ValueError`` for an option that its constructor doesn't take, and for one that is neither True nor False where its
    default is.
    """
    parameters = inspect.signature(mixer_class(mixer.name)).parameters.values()
    known = {parameter.name: parameter.default for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    options = dict(mixer.options)
    for key, value in options.items():
        if key not in known:
            raise ValueError(f"mixers: {mixer.name} has no option {key!r}{did_you_mean(key, known)}")
        if isinstance(known[key], bool):
            check_flag(key, value)
    if "shift" in known:
        options.setdefault("shift", spec.shift)
    return options
