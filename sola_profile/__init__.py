"""Cost models, measurement, comparison and reports for hybrid vision backbones; the ``sola-profile`` command."""

from sola_vision.version import __version__

__all__ = ["__version__"]
