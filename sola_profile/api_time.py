"""For notebooks: predicted times as an object that shows itself."""

from __future__ import annotations

import io
import warnings

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from sola_profile.api import Model, read_model
from sola_profile.arguments import Sizes, check_budget, read_sizes
from sola_profile.case import DTYPES, check_choice
from sola_profile.hardware import Machine
from sola_profile.machine_measuring import Measuring, Wanted, kept
from sola_profile.machine_store import find_machine
from sola_profile.report.time_terminal import print_times
from sola_profile.source import InputShape
from sola_profile.time_result import TimeResult
from sola_profile.time_sweep import TimePlan, TimeSweep

WIDTH = 120
THIS = "this"


class ShownTimes(TimeResult):
    """A ``TimeResult`` that prints as tables under rich and shows as HTML in a notebook."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = Console(width=options.max_width, file=io.StringIO(), force_terminal=True, highlight=False)
        print_times(self, shown)
        assert isinstance(shown.file, io.StringIO)
        yield Text.from_ansi(shown.file.getvalue())

    def _repr_html_(self) -> str:
        console = Console(record=True, width=WIDTH, file=io.StringIO())
        print_times(self, console)
        return console.export_html(inline_styles=True, code_format='<pre style="line-height:1.25">{code}</pre>')


def predict(
    model: str | Model,
    resolutions: Sizes = "224,512,1024",
    *,
    machine: str | Machine = THIS,
    input_shape: str | None = None,
    dtype: str | None = None,
    budget_s: float = 0.0,
) -> ShownTimes:
    """How long a model's forward pass takes on a machine, by a roofline over its operator calls.

    Args:
        model: a preset, ``timm:NAME``, ``torchvision:NAME``, ``package.module:factory``, a module, a ``BackboneSpec``, or
            something that makes one of these when it is called.
        resolutions: sizes in pixels: ``224``, ``"224,512x2048"`` as ``--res`` takes them, a ``Resolution``, or a list of these.
        machine: ``this``, whose ceilings are measured where none are kept or they no longer hold; a name that
            ``sola-profile machine --list`` gives, a file, or a ``Machine``.
        input_shape: what the model takes, with the letters H and W for the sides; the first number is the batch;
            None for what the model usually takes.
        dtype: of weights and input; None for float32, or for that of a ``Machine``, which has figures for one.
        budget_s: seconds to measure the model here as well, 0 for not at all.

    Returns:
        The result: ``models[0].rows`` by size, each with ``predicted.total`` (in seconds, ``middle`` between the ends of
        the ceilings' scatter), ``predicted.calls``, and ``latency`` and ``error`` where it was measured;
        ``models[0].interval_s(row)`` is the interval that holds four of five measured times.

    Raises:
        ValueError: names the argument, what came and what is allowed.
        TypeError: the same, for a model of another kind.

    """
    if dtype is not None:
        check_choice("dtype", dtype, DTYPES)
    check_budget(budget_s, nothing=0)
    source, sizes = read_model(model), read_sizes("resolutions", resolutions)
    found = _with_figures_for(machine, dtype) if isinstance(machine, Machine) else _machine(machine, dtype or "float32")
    if budget_s and not (machine == THIS or found.measured):
        raise ValueError(f"budget_s: {found.name} can't be measured here; expected 0, got {budget_s:g}")
    shape = None if input_shape is None else InputShape.parse(input_shape)
    sweep = TimeSweep(TimePlan((source,), sizes, found, shape, budget_s=budget_s))
    for _ in sweep.run():
        pass
    return ShownTimes(**vars(sweep.result()))


def _with_figures_for(machine: Machine, dtype: str | None) -> Machine:
    if dtype not in (None, machine.dtype):
        raise ValueError(f"dtype: {machine.name} has figures for {machine.dtype}, got {dtype!r}")
    return machine


def _machine(name: str, dtype: str) -> Machine:
    if name != THIS:
        return find_machine(name, dtype)
    wanted = Wanted("cpu", dtype, torch.get_num_threads())
    machine, drifts = kept(wanted)
    if machine is not None and not drifts:
        return machine
    measuring = Measuring(wanted)
    for _ in measuring.run():
        pass
    if measuring.problem:
        warnings.warn(measuring.problem, stacklevel=3)
    assert measuring.machine is not None
    return measuring.machine
