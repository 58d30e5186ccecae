"""For notebooks: a look into a model, as an object that shows itself."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from sola_profile.api import Shown
from sola_profile.case import Resolution, parse_resolutions, read_spec
from sola_profile.report.study import print_study
from sola_profile.report.study_json import study_json
from sola_profile.study.images import Samples
from sola_profile.study.instruments import Studying, fresh_model
from sola_profile.study.study_result import Extent, Study, StudyQuestion
from sola_vision.backbone import Backbone
from sola_vision.spec import BackboneSpec


class ShownStudy(Shown, Study):
    """A ``Study`` that shows itself."""

    def print_to(self, console: Console) -> None:
        """Print its tables and sentences."""
        print_study(self, console)

    def json_text(self) -> str:
        """What ``--json`` writes."""
        return study_json(self)


def study_model(
    model: str | BackboneSpec | Backbone,
    sizes: str | int | Iterable[Resolution] = 224,
    *,
    weights: str | Path | None = None,
    images: str | Path | None = None,
    count: int = 3,
    matrices: int = 8,
    rows: int = 512,
    threads: int | None = None,
) -> ShownStudy:
    """The mixing matrices of every layer, features across layers, and how far a stack of layers reaches.

    Args:
        model: a preset such as ``sola_t`` or ``sola_t[LL|LL|SSSSSS|SS]``, a ``BackboneSpec``, or a ``Backbone``, of which
            a copy is looked at.
        sizes: of images in pixels, such as ``"224,512"``.
        weights: a safetensors file; fresh weights unless given. Not for a ``Backbone``, which has its own.
        images: a folder; generated images unless given.
        count: how many images; the matrices are those of the first.
        matrices: how many heads or channels of a layer are written out.
        rows: how many rows of each; 0 for all.
        threads: of PyTorch's CPU operators.

    Returns:
        The study: ``sizes`` (``layers``, ``depths``, ``cka``, ``fields``), ``horizons`` (``decays``, ``own``, ``linear``, ``repeated``) and
        whether every matrix ``agrees`` with its operator. Ctrl-C returns what was known by then, with ``interrupted`` set.

    Raises:
        ValueError: names the argument, what came and what is allowed.

    """
    if isinstance(model, Backbone):
        if weights is not None:
            raise ValueError(f"weights: a Backbone has its own, got {weights}")
        built = model
    else:
        spec = read_spec(model) if isinstance(model, str) else model
        built = fresh_model(spec, None if weights is None else Path(weights))
    question = StudyQuestion(
        model=built,
        sizes=parse_resolutions(str(sizes)) if isinstance(sizes, (str, int)) else tuple(sizes),
        samples=Samples(count, None if images is None else Path(images)),
        extent=Extent(matrices, rows),
        weights="the given model" if isinstance(model, Backbone) else "" if weights is None else Path(weights).name,
        threads=threads,
    )
    studying = Studying(question)
    try:
        for _ in studying.run():
            pass
    except KeyboardInterrupt:
        studying.interrupted = True
    return ShownStudy(**vars(studying.result()))
