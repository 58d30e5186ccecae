"""``python -m sola_vision.train``: a training run as a command. Torch loads when a run begins."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import click

from sola_vision.presets import PRESETS, get_spec
from sola_vision.spec import BackboneSpec
from sola_vision.suggest import did_you_mean
from sola_vision.train.config import Optimiser, Output, Regularisation, TrainConfig, TrainResult
from sola_vision.train.proxy import PROXY_MIXERS, proxy_spec
from sola_vision.train.tasks import TASKS
from sola_vision.version import __version__

INTERRUPTED = 130
PROXIES = {f"proxy_{mixer}": mixer for mixer in PROXY_MIXERS}

Part = TypeVar("Part", Optimiser, Regularisation)

# \b keeps click from wrapping the lines that follow
EXAMPLES = """\b
Examples:
  python -m sola_vision.train --model proxy_wkv --pattern 'L|L|LLSLLS|L' --init fan_in \\
      --data task:count --res 24 --batch 32 --steps 200 --lr 2e-3
  python -m sola_vision.train --model sola_t --data imagenet --epochs 300 --out run --amp
  torchrun --nproc-per-node 8 -m sola_vision.train --model sola_t --data imagenet --device cuda ...
"""


@click.command(epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("-m", "--model", required=True, metavar="NAME", help="A preset such as sola_t, or proxy_wkv.")
@click.option("--pattern", metavar="PATTERN", help="Another pattern for the same depths.")
@click.option("--mixer", "mixers", multiple=True, metavar="L=NAME", help="What a letter stands for. Repeatable.")
@click.option("--data", required=True, metavar="DATA", help="A folder with train and val, or task:match:d=40.")
@click.option("-r", "--res", "size", default=224, show_default=True, metavar="PIXELS", help="Side of the images.")
@click.option("--steps", type=int, metavar="N", help="Steps of the optimiser.")
@click.option("--epochs", type=float, metavar="N", help="Instead of --steps, for a folder.")
@click.option("--batch", default=64, show_default=True, metavar="N", help="Images per step, over all processes.")
@click.option("--eval-size", type=int, metavar="N", help="Images of the evaluation.  [default: 2048; a folder: all]")
@click.option("--lr", default=1e-3, show_default=True, metavar="RATE", help="Largest learning rate of AdamW.")
@click.option("--min-lr", default=1e-5, show_default=True, metavar="RATE", help="Where the cosine ends.")
@click.option("--warmup", default=0, show_default=True, metavar="STEPS", help="Linear rise of the rate.")
@click.option("--weight-decay", default=0.05, show_default=True, metavar="RATE", help="Of matrices alone.")
@click.option("--betas", nargs=2, type=float, default=(0.9, 0.999), show_default=True, help="Of AdamW.")
@click.option("--clip", default=5.0, show_default=True, metavar="NORM", help="Of the whole gradient; 0: none.")
@click.option("--ema", default=0.0, show_default=True, metavar="DECAY", help="Averaged weights; 0: none.")
@click.option("--mixup", default=0.0, show_default=True, metavar="ALPHA", help="Mix images; 0: none.")
@click.option("--cutmix", default=0.0, show_default=True, metavar="ALPHA", help="Mix boxes of images; 0: none.")
@click.option("--label-smoothing", default=0.0, show_default=True, metavar="SHARE", help="Over all classes.")
@click.option("--drop-path", type=float, metavar="RATE", help="Of the last layer.  [default: the model's own]")
@click.option("--rand-augment", default="", metavar="TEXT", help="timm's, such as rand-m9-mstd0.5-inc1.")
@click.option("--erasing", default=0.0, show_default=True, metavar="SHARE", help="timm's random erasing.")
@click.option("--init", default="model", show_default=True, metavar="NAME", help="model, or fan_in for narrow ones.")
@click.option("--amp", is_flag=True, help="bfloat16 autocast.")
@click.option("--device", default="cpu", show_default=True, metavar="DEVICE", help="cpu, cuda or cuda:N.")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Threads of PyTorch's CPU operators.")
@click.option("--workers", default=0, show_default=True, metavar="N", help="Processes that read images.")
@click.option("--seed", default=0, show_default=True, metavar="N", help="Of weights, data and noise.")
@click.option("--out", "folder", metavar="FOLDER", help="Write log, checkpoint, weights and result there.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in --out; from step 0 without one.")
@click.option("--checkpoint-every", default=0, show_default=True, metavar="STEPS", help="0: at the end alone.")
@click.option("--eval-every", default=0, show_default=True, metavar="STEPS", help="0: at the end alone.")
@click.option("--log-every", default=50, show_default=True, metavar="STEPS", help="Per line of log.csv.")
@click.option("--tensorboard", is_flag=True, help="Event files beside log.csv.")
@click.option("--json", "as_json", is_flag=True, help="The result as one line of JSON.")
@click.version_option(__version__, prog_name="sola_vision.train")
def command(**options: Any) -> None:
    """Train a backbone on a folder of images or a generated task, and evaluate it.

    Prints one line with the result; progress goes to standard error. Under torchrun all processes share each batch.
    """
    threads, resume, as_json = (options.pop(name) for name in ("threads", "resume", "as_json"))
    try:
        config = read_config(options)
        result = run(config, resume=resume, threads=threads)
    except (ValueError, TypeError) as error:
        raise click.UsageError(str(error)) from error
    except FloatingPointError as error:
        raise click.ClickException(str(error)) from error
    if _leads():
        click.echo(json.dumps(result.record()) if as_json else in_words(result))


def read_config(options: dict[str, Any]) -> TrainConfig:
    """The config of these options; raises ``ValueError`` that names the option."""
    data = _known_data(options["data"])
    spec = _find_spec(options["model"])
    mixers = dict(_letter(text) for text in options["mixers"])
    if options["pattern"] or mixers:
        spec = spec.rewired(pattern=options["pattern"], mixers=mixers)
    eval_size = options["eval_size"]
    if eval_size is None:
        eval_size = 2048 if data.startswith("task:") else 0
    plain = ("size", "steps", "epochs", "batch", "amp", "init", "device", "workers", "seed")
    return TrainConfig(
        model=spec,
        data=data,
        eval_size=eval_size,
        optimiser=_part(Optimiser, options),
        regularisation=_part(Regularisation, options),
        output=_output(options),
        **{name: options[name] for name in plain},
    )


def _part(kind: type[Part], options: dict[str, Any]) -> Part:
    return kind(**{field.name: options[field.name] for field in fields(kind)})


def _output(options: dict[str, Any]) -> Output:
    return Output(**{field.name: options[field.name] for field in fields(Output)})


def _find_spec(name: str) -> BackboneSpec:
    if name in PROXIES:
        return proxy_spec("LLLLLL", PROXIES[name])
    if name in PRESETS:
        return get_spec(name)
    raise ValueError(f"--model: nothing is named {name!r}{did_you_mean(name, [*PRESETS, *PROXIES])}")


def _letter(text: str) -> tuple[str, str]:
    letter, equals, name = text.partition("=")
    if not equals:
        raise ValueError(f"--mixer: expected a letter and a mixer such as L=decay, got {text!r}")
    return letter.strip(), name.strip()


def _known_data(text: str) -> str:
    """A folder that exists, or a task; a bare task's name is the likeliest slip."""
    if text.startswith("task:") or Path(text).is_dir():
        return text
    hint = f"; did you mean 'task:{text}'?" if text.partition(":")[0] in TASKS else ""
    raise ValueError(f"--data: there is no folder {text!r}{hint}; expected a folder or one of {_tasks()}")


def _tasks() -> str:
    return ", ".join(f"task:{name}" for name in TASKS)


def run(config: TrainConfig, *, resume: bool, threads: int | None) -> TrainResult:
    """Train, with progress on standard error and Ctrl-C at the end of a step."""
    import torch

    from sola_vision.train.checkpoint import NAME, starts_anew
    from sola_vision.train.loop import train
    from sola_vision.train.progress import shown

    if threads is not None:
        torch.set_num_threads(threads)
    # several processes would stop at different steps and wait for each other
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    folder = config.output.folder
    stop: Callable[[], bool] | None = None
    try:
        if resume and folder is not None and starts_anew(folder) and _leads():
            click.echo(f"{folder} holds no {NAME}: the run starts from step 0", err=True)
        with _interrupts(held=alone) as stop, shown(quiet=not _leads()) as progress:
            return train(config, resume=resume, progress=progress, stop=stop)
    except (MemoryError, RuntimeError) as error:
        # a worker that Ctrl-C reached before it had learnt to leave it alone
        if stop is not None and stop() and "DataLoader worker" in str(error):
            raise _interrupted(config) from error
        # an allocation on the CPU fails with a plain RuntimeError
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
            raise click.ClickException(
                f"out of memory: a smaller --batch or --res needs less{_kept(config)}"
            ) from error
        raise
    except OSError as error:
        raise click.ClickException(f"{error}{_kept(config)}") from error
    except KeyboardInterrupt:
        raise _interrupted(config) from None


def _leads() -> bool:
    """Whether this is the process of a run that talks."""
    return os.environ.get("RANK", "0") == "0"


def _interrupted(config: TrainConfig) -> click.Abort:
    click.echo(f"interrupted{_kept(config)}", err=True)
    return click.Abort()


def _kept(config: TrainConfig) -> str:
    from sola_vision.train.checkpoint import NAME

    folder = config.output.folder
    if folder is None or not os.path.exists(folder / NAME):
        return ""
    return f"; --resume goes on from the last checkpoint in {folder}"


@contextmanager
def _interrupts(*, held: bool) -> Iterator[Callable[[], bool] | None]:
    """Whether Ctrl-C was pressed, where it is held back until asked for; pressed again, it ends the run at once."""
    if not held:
        yield None
        return
    pressed = []

    def press(number: int, _: FrameType | None) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def in_words(result: TrainResult) -> str:
    """The result in one line, for people."""
    parts = [f"accuracy {result.accuracy:.2%} ({result.correct} of {result.total}), loss {result.loss:.4g}"]
    if result.ema_accuracy is not None:
        parts.append(f"averaged weights {result.ema_accuracy:.2%}, loss {result.ema_loss:.4g}")
    return "; ".join([*parts, f"{result.steps} steps in {result.train_seconds:.1f} s"])


def main() -> None:
    """Run the command and leave with its exit code: 0, 1 for a failed run, 2 for bad use, 130 when interrupted."""
    try:
        code = command.main(prog_name="python -m sola_vision.train", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    sys.exit(code)
