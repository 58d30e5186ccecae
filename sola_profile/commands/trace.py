"""``sola-profile trace``: one step of a model as a Chrome trace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sola_profile.case import DTYPES, MODES, Resolution, Settings
from sola_profile.commands.output import STDOUT, Targets, check_device, checked
from sola_profile.errors import first_line
from sola_profile.source import DEFAULT_INPUT, BuildError, InputShape, ModelSource, read_source

if TYPE_CHECKING:
    from sola_profile.workload import Step, Workload

WARM_UP_RUNS = 3


@click.command()
@click.option("-m", "--model", required=True, metavar="NAME", help="As for the profile: a preset, timm:NAME…")
@click.option("-r", "--res", default="224", show_default=True, metavar="SIZE", help="Pixels: 224 or 512x2048.")
@click.option("--out", default="trace.json.gz", show_default=True, metavar="FILE", help="Packed if it ends in .gz.")
@click.option("--pattern", metavar="PATTERN", help="Another layer pattern of a preset.")
@click.option("--input", "shape", metavar="SHAPE", help=f"What the model takes.  [default: {DEFAULT_INPUT}]")
@click.option("--batch", default=1, show_default=True, metavar="N", help="Images per step.")
@click.option("--dtype", default="float32", show_default=True, metavar="DTYPE", help=f"{', '.join(DTYPES)}.")
@click.option("--device", default="cpu", show_default=True, metavar="DEVICE", help="cpu, cuda or cuda:N.")
@click.option("--threads", type=int, metavar="N", help="Threads of PyTorch's CPU operators.")
@click.option("--mode", default="infer", show_default=True, metavar="MODE", help=f"{' or '.join(MODES)}.")
def trace(**options: Any) -> None:
    """Write one warm step for Perfetto: modules as spans around their operators, with shapes and memory.

    Open the file at https://ui.perfetto.dev or in chrome://tracing. The profiler slows short operators down; take times
    from the profile.
    """
    source = checked(lambda: read_source(options["model"], options["pattern"]))
    resolution = checked(lambda: Resolution.parse(options["res"]), "--res")
    shape = None if options["shape"] is None else checked(lambda: InputShape.parse(options["shape"]), "--input")
    names = ("batch", "dtype", "device", "mode", "threads")
    checked(lambda: check_device(options["device"]), "--device")
    settings = checked(lambda: Settings(**{name: options[name] for name in names}))
    checked(lambda: source.check_input(shape), "--input")
    if options["out"] == STDOUT:
        raise click.BadParameter(f"expected a file, got {STDOUT!r}", param_hint="--out")
    path = Path(options["out"])
    Targets(None, {"out": str(path)}).check()
    from sola_profile.measure.trace import write_trace
    from sola_profile.workload import cpu_threads

    with cpu_threads(settings.threads):
        click.echo(f"warming up {source.name} at {resolution}", err=True)
        try:
            workload, step = warm(source, settings, shape, resolution)
        except BuildError as error:
            raise click.UsageError(str(error)) from error
        except Exception as error:
            if source.spec is not None:
                raise
            raise click.UsageError(
                f"{source.name} doesn't run at {resolution}: {type(error).__name__}: {first_line(error)}"
            ) from error
        for _ in range(WARM_UP_RUNS):
            step()
        write_trace(workload, step, path)
    click.echo(f"Trace: {path}")


def warm(
    source: ModelSource, settings: Settings, shape: InputShape | None, resolution: Resolution
) -> tuple[Workload, Step]:
    """The model and a step that has run once; built for this size where it takes no other."""
    from sola_profile.workload import build

    def tried(size: Resolution | None) -> tuple[Workload, Step]:
        workload = build(source, settings, shape=shape, resolution=size)
        step = workload.step(workload.image(resolution))
        step()
        return workload, step

    try:
        return tried(None)
    except BuildError:
        raise
    except Exception:
        if source.spec is not None:
            raise
        return tried(resolution)
