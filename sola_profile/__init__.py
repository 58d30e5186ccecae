"""Cost models, measurement, comparison and reports for hybrid vision backbones; the ``sola-profile`` command."""

from typing import TYPE_CHECKING

from sola_vision.version import __version__

if TYPE_CHECKING:
    from sola_profile.api import formula, load, profile
    from sola_profile.api_place import place

__all__ = ["__version__", "formula", "load", "place", "profile"]


def __getattr__(name: str) -> object:
    # torch loads with the first call, so that the command's help needs none
    if name == "place":
        from sola_profile.api_place import place

        return place
    if name in __all__:
        from sola_profile import api

        return getattr(api, name)
    raise AttributeError(f"module 'sola_profile' has no attribute {name!r}")
