"""For notebooks: a look into a model, as an object that shows itself."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from torch import nn

from sola_profile.api import Shown
from sola_profile.arguments import Sizes, read_sizes
from sola_profile.report.study import print_study
from sola_profile.report.study_json import study_json
from sola_profile.study.images import Samples
from sola_profile.study.instruments import Studying
from sola_profile.study.study_result import Extent, Study, StudyQuestion
from sola_profile.study.subject import Subject, inner_backbone, read_subject
from sola_profile.study.weights import Weights
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
    sizes: Sizes = 224,
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
        model: a preset such as ``sola_t`` or ``sola_t[LL|LL|SSSSSS|SS]``, ``package.module:factory`` that gives a ``Backbone`` or a
            ``BackboneSpec``, one of these itself, with any mixers. Of a ``Backbone`` a copy is looked at.
        sizes: of images in pixels: ``224``, ``"224,512x2048"``, a ``Resolution``, or a list of these.
        weights: a safetensors file, or ``checkpoint.pt`` of a training run; fresh weights unless given, or those that a factory
            gives. Not for a ``Backbone``, which has its own.
        images: a folder, or a training task such as ``task:match:d=16``; generated images unless given.
        count: how many images; the matrices are those of the first.
        matrices: how many heads or channels of a layer are written out.
        rows: how many rows of each; 0 for all.
        threads: of PyTorch's CPU operators.

    Returns:
        The study: ``sizes`` (``layers``, ``depths``, ``cka``, ``fields``), ``horizons`` (``decays``, ``own``, ``linear``, ``repeated``) and
        whether every matrix ``agrees`` with its operator. Ctrl-C returns what was known by then, with ``interrupted`` set.

    Raises:
        ValueError: names the argument, what came and what is allowed.
        TypeError: the same, for a model of another kind.

    """
    built, source = _built(model, None if weights is None else Path(weights))
    question = StudyQuestion(
        model=built,
        sizes=read_sizes("sizes", sizes),
        samples=Samples.of(count, images),
        extent=Extent(matrices, rows),
        weights=source,
        threads=threads,
    )
    studying = Studying(question)
    try:
        for _ in studying.run():
            pass
    except KeyboardInterrupt:
        studying.interrupted = True
    return ShownStudy(**vars(studying.result()))


def _built(model: str | BackboneSpec | Backbone, weights: Path | None) -> tuple[Backbone, Weights]:
    """The model, and where its weights come from."""
    if isinstance(model, Backbone):
        if weights is not None:
            raise ValueError(f"weights: a Backbone has its own, got {weights}")
        return model, Weights("the given model", given=True)
    if isinstance(model, BackboneSpec):
        return Subject(model.name, model, model).model(weights)
    if isinstance(model, str):
        return read_subject(model).model(weights)
    inner = inner_backbone(model) if isinstance(model, nn.Module) else ""
    raise TypeError(f"model: expected a name, a BackboneSpec or a Backbone, got {type(model).__name__}{inner}")
