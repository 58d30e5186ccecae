"""Cost models, measurement, comparison and reports for hybrid vision backbones; the ``sola-profile`` command."""

from importlib import import_module
from typing import TYPE_CHECKING

from sola_vision.version import __version__

if TYPE_CHECKING:
    from sola_profile.api import formula, load, profile
    from sola_profile.api_place import place
    from sola_profile.api_study import study_model
    from sola_profile.api_time import predict
    from sola_profile.peers.swap import pytorch_operators

__all__ = ["__version__", "formula", "load", "place", "predict", "profile", "pytorch_operators", "study_model"]

_HOMES = {
    **dict.fromkeys(("formula", "load", "profile"), "sola_profile.api"),
    "place": "sola_profile.api_place",
    "predict": "sola_profile.api_time",
    "pytorch_operators": "sola_profile.peers.swap",
    "study_model": "sola_profile.api_study",
}


def __getattr__(name: str) -> object:
    # torch loads with the first call, so that the command's help needs none
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sola_profile' has no attribute {name!r}")


def __dir__() -> list[str]:
    # names that load late are names all the same, to completion too
    return sorted({*globals(), *__all__})
