"""For notebooks: a model's formula and its profile as objects that show themselves."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text
from torch import nn

from sola_profile.arguments import Sizes, check_budget, check_seconds, read_settings, read_sizes, read_texts
from sola_profile.auto_sizes import auto_sizes
from sola_profile.case import DTYPES, Settings, check_choice
from sola_profile.cost.symbolic import LIMIT_S
from sola_profile.formula_result import FormulaResult
from sola_profile.formula_sweep import FormulaSweep, MemoryOptions
from sola_profile.report.formula_terminal import print_formula
from sola_profile.report.json_file import json_text
from sola_profile.report.read_json import load_profile
from sola_profile.report.terminal import print_profile
from sola_profile.result import Profile
from sola_profile.source import FACTORY, InputShape, ModelSource, read_source
from sola_profile.sweep import Plan, Sweep
from sola_vision.spec import BackboneSpec

WIDTH = 120

Model = nn.Module | BackboneSpec | Callable[[], nn.Module | BackboneSpec]


class Shown:
    """Prints as tables under rich and shows as HTML in a notebook."""

    def print_to(self, console: Console) -> None:
        """Print everything."""
        raise NotImplementedError

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text.from_ansi(self._printed(options.max_width))

    def _repr_html_(self) -> str:
        console = Console(record=True, width=WIDTH, file=io.StringIO())
        self.print_to(console)
        return console.export_html(inline_styles=True, code_format='<pre style="line-height:1.25">{code}</pre>')

    def _printed(self, width: int) -> str:
        console = Console(width=width, file=io.StringIO(), force_terminal=True, highlight=False)
        self.print_to(console)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()


class ShownFormula(Shown, FormulaResult):
    """A ``FormulaResult`` that shows itself."""

    def print_to(self, console: Console) -> None:
        """Print its tables."""
        print_formula(self, console)


class ShownProfile(Shown, Profile):
    """A ``Profile`` that shows itself."""

    def print_to(self, console: Console) -> None:
        """Print its tables and sentences."""
        print_profile(self, console)

    def json_text(self) -> str:
        """What ``--json`` writes, and ``load`` reads."""
        return json_text(self)


def formula(
    model: str | Model,
    resolutions: Sizes = "224,512,1024",
    *,
    input_shape: str | None = None,
    dtype: str = "float32",
    limit_s: float = LIMIT_S,
    memory: MemoryOptions | None = None,
) -> ShownFormula:
    """What a model's forward pass costs as exact polynomials, checked at some sizes.

    Args:
        model: a preset, ``timm:NAME``, ``torchvision:NAME``, ``package.module:factory``, a module, a ``BackboneSpec``, or
            something that makes one of these when it is called (with ``img_size`` where it takes that). A module keeps its
            weights and its mode.
        resolutions: sizes in pixels: ``224``, ``"224,512x2048"`` as ``--res`` takes them, a ``Resolution``, or a list of these.
        input_shape: what the model takes, with the letters H and W for the sides; the first number is the batch; None
            for the usual.
        dtype: of weights and input.
        limit_s: seconds to look for polynomials.
        memory: whether to measure peak memory too, and what the largest image should fit in.

    Returns:
        The result: ``formula`` with its ``total`` and ``value(quantity, resolution)``, ``rows`` by size, ``coverage``.
        Units: multiply-accumulates, operations, bytes.

    Raises:
        ValueError: names the argument, what came and what is allowed.
        TypeError: the same, for a model of another kind.

    """
    check_choice("dtype", dtype, DTYPES)
    check_seconds("limit_s", limit_s)
    source, sizes = read_model(model), read_sizes("resolutions", resolutions)
    shape = source.default_input if input_shape is None else InputShape.parse(input_shape)
    sweep = FormulaSweep(source, sizes, shape, dtype, limit_s, memory=memory)
    for _ in sweep.run():
        pass
    result = sweep.result()
    assert result is not None
    return ShownFormula(**vars(result))


def profile(
    model: str | Model,
    resolutions: Sizes = "224,512,1024",
    *,
    settings: Settings | None = None,
    budget_s: float | None = 80.0,
    input_shape: str | None = None,
    others: str | Iterable[str] = (),
    with_twins: bool = True,
    isolate: bool = False,
) -> ShownProfile:
    """Count, predict and measure a model at several image sizes, as ``sola-profile`` does.

    Args:
        model: as for ``formula``.
        resolutions: as for ``formula``, or ``"auto"``.
        settings: batch, dtype, device, mode, compilation and threads.
        budget_s: seconds for all measuring; None measures nothing.
        input_shape: what the model takes, with the letters H and W for the sides; None for the usual.
        others: models to set beside it, by name.
        with_twins: whether a preset or a ``BackboneSpec`` stands beside itself all linear and all softmax.
        isolate: whether every size is measured in a process of its own; a program must then start behind
            ``if __name__ == "__main__"``, as Python's multiprocessing wants it.

    Returns:
        The result: ``model`` with its ``rows`` by size and its ``scaling``, ``twins``, ``crossovers``, ``environment``.
        Units: seconds, bytes, multiply-accumulates. Ctrl-C returns what is finished, with ``interrupted`` set.

    Raises:
        ValueError: names the argument, what came and what is allowed.
        TypeError: the same, for a model of another kind.

    """
    source, settings = read_model(model), read_settings(settings)
    check_budget(budget_s)
    shape = None if input_shape is None else InputShape.parse(input_shape)
    beside = tuple(map(read_source, read_texts("others", others, "sola_t")))
    auto = isinstance(resolutions, str) and resolutions.strip().lower() == "auto"
    sizes = (
        auto_sizes(source, settings, budget_s, shape).resolutions if auto else read_sizes("resolutions", resolutions)
    )
    sweep = Sweep(Plan(source, sizes, settings, budget_s, "", shape, beside, with_twins, isolate=isolate))
    try:
        for _ in sweep.run():
            pass
    except KeyboardInterrupt:
        sweep.interrupted = True
    found = sweep.profile()
    if not found.contenders:
        if sweep.interrupted:
            raise KeyboardInterrupt
        raise ValueError(f"resolutions: {source.name} takes none of them: {sweep.refused}")
    return ShownProfile(**vars(found))


def load(path: str | Path) -> ShownProfile:
    """The profile in a file that ``sola-profile --json`` wrote, such as ``result.json`` of a report.

    Raises ``OSError`` when it can't be read, and ``ValueError`` when it is no profile or of another ``schema_version``.
    """
    return ShownProfile(**vars(load_profile(path)))


def read_model(model: str | Model) -> ModelSource:
    """Where a model comes from; raises ``TypeError`` for what is none, and ``ValueError`` for a wrong name."""
    if isinstance(model, str):
        return read_source(model)
    if isinstance(model, BackboneSpec):
        return ModelSource.of(model)
    if not callable(model):
        came = type(model).__name__
        raise TypeError(f"model: expected a name, a module, a BackboneSpec or a factory, got {came}")
    name = type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", repr(model))
    return ModelSource(name, FACTORY, made=model)
