"""For notebooks: where softmax layers go, as an object that shows itself."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from sola_profile.api import Shown
from sola_profile.arguments import Sizes, check_budget, read_settings, read_size, read_stages, read_texts
from sola_profile.case import Settings
from sola_profile.hardware import Machine
from sola_profile.machine_store import find_machine
from sola_profile.report.placement import print_placement
from sola_profile.report.placement_json import placement_json
from sola_profile.study.placement import Budgets, Placement, Question
from sola_profile.study.placing import Placing
from sola_profile.study.reach import RUN
from sola_profile.study.subject import Subject, read_subject
from sola_vision.backbone import Backbone
from sola_vision.spec import BackboneSpec


class ShownPlacement(Shown, Placement):
    """A ``Placement`` that shows itself."""

    def print_to(self, console: Console) -> None:
        """Print its tables and sentences."""
        print_placement(self, console)

    def json_text(self) -> str:
        """What ``--json`` writes."""
        return placement_json(self)


def place(
    model: str | BackboneSpec | Backbone,
    resolution: Sizes = 224,
    *,
    score: str = RUN,
    budgets: Budgets | None = None,
    settings: Settings | None = None,
    stages: int | Iterable[int] = (1, 2, 3, 4),
    swaps: str | Iterable[str] = (),
    table: str | Path | None = None,
    decay_per: str | None = None,
    cost: str | None = None,
    budget_s: float | None = None,
    machine: str | Machine | None = None,
) -> ShownPlacement:
    """Which layers of a backbone should be softmax: the exact front of cost and reach over all its patterns.

    Args:
        model: a preset such as ``sola_t``, with a pattern to compare with as in ``sola_t[LL|LL|LLSLLS|LL]``,
            ``package.module:factory`` that gives a ``Backbone`` or a ``BackboneSpec``, or one of these itself, with any mixers. Of a
            ``Backbone`` the spec is looked at, not the weights.
        resolution: of the image in pixels, such as ``224``, ``"512x2048"`` or a ``Resolution``.
        score: of reach: ``run``, ``horizon``, ``accuracy`` or ``erf``.
        budgets: the most softmax layers, seconds, multiply-accumulates and bytes.
        settings: batch, dtype, device and threads.
        stages: whose layers are free; the others keep their letters.
        swaps: changes of one layer to show, such as ``3.4=S``.
        table: CSV file with the columns pattern and accuracy, for the score ``accuracy``; the paper's unless given.
        decay_per: of WKV layers, for the score ``horizon``: ``sequence`` or ``token``; the model's own unless given.
        cost: ``latency_ns`` or ``macs``; latency where it is measured, unless given.
        budget_s: seconds for all measuring; None measures nothing, and MACs are the cost unless a machine is given.
        machine: whose ceilings predict the time of every layer, instead of measuring: a name that ``sola-profile machine
            --list`` gives, a file, or a ``Machine``.

    Returns:
        The answer: ``front``, ``chosen``, ``references``, ``swaps``, ``confirmations``; each option with its ``pattern``,
        ``macs``, ``latency_s``, ``score`` and, where it is shown, ``memory``. Ctrl-C returns what was known by then, with
        ``interrupted`` set.

    Raises:
        ValueError: names the argument, what came and what is allowed.
        TypeError: the same, for a model of another kind.

    """
    settings = read_settings(settings)
    check_budget(budget_s)
    subject = _subject(model)
    question = Question(
        spec=subject.base,
        resolution=read_size("resolution", resolution),
        settings=settings,
        pattern=subject.spec.pattern,
        score=score,
        budgets=budgets or Budgets(),
        stages=read_stages(stages),
        swaps=read_texts("swaps", swaps, "3.4=S"),
        table=None if table is None else Path(table),
        decay_per=decay_per,
        budget_s=budget_s,
        machine=find_machine(machine, settings.dtype) if isinstance(machine, str) else machine,
        cost=cost,
        source=subject.source,
    )
    placing = Placing(question)
    try:
        for _ in placing.run():
            pass
    except KeyboardInterrupt:
        placing.finish()
    return ShownPlacement(**vars(placing.result()))


def _subject(model: str | BackboneSpec | Backbone) -> Subject:
    """A name's, or that of a spec."""
    if isinstance(model, str):
        return read_subject(model)
    spec = model.spec if isinstance(model, Backbone) else model
    if not isinstance(spec, BackboneSpec):
        raise TypeError(f"model: expected a name, a BackboneSpec or a Backbone, got {type(model).__name__}")
    return Subject(spec.name, spec, spec)
