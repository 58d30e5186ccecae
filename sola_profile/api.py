"""For notebooks: a model's formula as an object that shows itself."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text
from torch import nn

from sola_profile.case import Resolution, parse_resolutions
from sola_profile.cost.symbolic import LIMIT_S
from sola_profile.formula_result import FormulaResult
from sola_profile.formula_sweep import FormulaSweep, MemoryOptions
from sola_profile.report.formula_terminal import print_formula
from sola_profile.source import DEFAULT_INPUT, FACTORY, InputShape, ModelSource, read_source

WIDTH = 120


class ShownFormula(FormulaResult):
    """A ``FormulaResult`` that prints as tables under rich and shows as HTML in a notebook."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text.from_ansi(self._printed(options.max_width))

    def _repr_html_(self) -> str:
        console = Console(record=True, width=WIDTH, file=io.StringIO())
        print_formula(self, console)
        return console.export_html(inline_styles=True, code_format='<pre style="line-height:1.25">{code}</pre>')

    def _printed(self, width: int) -> str:
        console = Console(width=width, file=io.StringIO(), force_terminal=True, highlight=False)
        print_formula(self, console)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()


def formula(
    model: str | nn.Module | Callable[[], nn.Module],
    resolutions: str | Iterable[Resolution] = "224,512,1024",
    *,
    input_shape: str = DEFAULT_INPUT,
    dtype: str = "float32",
    limit_s: float = LIMIT_S,
    memory: MemoryOptions | None = None,
) -> ShownFormula:
    """What a model's forward pass costs as exact polynomials, checked at some sizes.

    Args:
        model: a preset, ``timm:NAME``, ``torchvision:NAME``, ``package.module:factory``, a module, or something that
            makes one when it is called (with ``img_size`` where it takes that). A module keeps its weights and its mode.
        resolutions: sizes in pixels as ``--res`` takes them, or ``Resolution`` objects.
        input_shape: what the model takes, with the letters H and W for the sides; the first number is the batch.
        dtype: of weights and input.
        limit_s: seconds to look for polynomials.
        memory: whether to measure peak memory too, and what the largest image should fit in.

    Returns:
        The result: ``formula`` with its ``total`` and ``value(quantity, resolution)``, ``rows`` by size, ``coverage``.
        Units: multiply-accumulates, operations, bytes.

    Raises:
        ValueError: names the argument, what came and what is allowed.

    """
    source = read_source(model) if isinstance(model, str) else ModelSource(_name(model), FACTORY, made=model)
    sizes = parse_resolutions(resolutions) if isinstance(resolutions, str) else tuple(resolutions)
    sweep = FormulaSweep(source, sizes, InputShape.parse(input_shape), dtype, limit_s, memory=memory)
    for _ in sweep.run():
        pass
    result = sweep.result()
    assert result is not None
    return ShownFormula(**vars(result))


def _name(model: nn.Module | Callable[[], nn.Module]) -> str:
    return type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", repr(model))
