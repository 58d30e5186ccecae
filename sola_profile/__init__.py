"""Cost models, measurement, comparison and reports for hybrid vision backbones; the ``sola-profile`` command."""

from typing import TYPE_CHECKING

from sola_vision.version import __version__

if TYPE_CHECKING:
    from sola_profile.api import formula

__all__ = ["__version__", "formula"]


def __getattr__(name: str) -> object:
    # torch loads with the first call, so that the command's help needs none
    if name == "formula":
        from sola_profile import api

        return api.formula
    raise AttributeError(f"module 'sola_profile' has no attribute {name!r}")
