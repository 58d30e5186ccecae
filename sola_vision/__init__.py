"""Vision backbones that mix linear and softmax attention layer by layer (SoLA-Vision, arXiv 2601.11164)."""

from typing import TYPE_CHECKING

from sola_vision.pattern import PatternError, parse_pattern
from sola_vision.presets import get_spec, list_models
from sola_vision.spec import BackboneSpec, Bridge, MixerSpec
from sola_vision.version import __version__

if TYPE_CHECKING:
    from sola_vision.backbone import Backbone
    from sola_vision.factory import create_model, load_weights, save_weights

__all__ = [
    "Backbone",
    "BackboneSpec",
    "Bridge",
    "MixerSpec",
    "PatternError",
    "__version__",
    "create_model",
    "get_spec",
    "list_models",
    "load_weights",
    "parse_pattern",
    "save_weights",
]


def __getattr__(name: str) -> object:
    # torch and the compiled extension load with the first model, so that specs and patterns need neither
    if name in ("Backbone", "create_model", "load_weights", "save_weights"):
        from sola_vision import backbone, factory

        return getattr(backbone if name == "Backbone" else factory, name)
    raise AttributeError(f"module 'sola_vision' has no attribute {name!r}")


def __dir__() -> list[str]:
    # names that load late are names all the same, to completion too
    return sorted({*globals(), *__all__})
