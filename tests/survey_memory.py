"""Peak memory, predicted and measured on the CPU, of the smallest model in every module of timm.

``python tests/survey_memory.py --mode train`` prints a row of Markdown a model, ``… mobilenetv3 vgg`` only these modules. All
of them take about half an hour on two cores and 8 GB.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch

from sola_profile.case import Resolution, Settings
from sola_profile.cost.liveness import predict_peak
from sola_profile.errors import first_line
from sola_profile.measure.peak_memory import measure_peak_bytes
from sola_profile.source import TIMM, _package, read_source
from sola_profile.workload import build, cpu_threads

MIB = 2**20


def smallest_models(timm: Any, modules: list[str]) -> Iterator[str]:
    """The model with the fewest parameters in every module of timm's own."""
    for module in modules or timm.list_modules():
        sizes = {}
        for name in timm.list_models(module=module):
            with torch.device("meta"):
                sizes[name] = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
        yield min(sizes, key=sizes.__getitem__)


def sides(timm: Any, name: str, side: int) -> tuple[int, ...]:
    """The side asked for, then the model's own for those that take no other."""
    known = timm.get_pretrained_cfg(name)
    return (side, known.input_size[-1]) if known else (side,)


def row(name: str, side: int, settings: Settings) -> str:
    """Predicted and measured bytes of a step, in a second pass like all later ones."""
    source, size = read_source(f"{TIMM}:{name}"), Resolution(side, side)
    peak = predict_peak(build(source, settings, "meta", resolution=size), size)
    workload = build(source, settings, resolution=size)
    step = workload.step(workload.image(size))
    step()
    seen = measure_peak_bytes(step, workload.device)
    error = peak.step_bytes / seen - 1
    return f"| {name} | {side} | {peak.step_bytes / MIB:.2f} | {seen / MIB:.2f} | {error:+.2%} | {peak.at} |"


def main() -> None:
    """Rows as they come; a model that takes neither size is named with its error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*")
    parser.add_argument("--mode", choices=("infer", "train"), default="infer")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    timm = _package(TIMM)
    print("| model | size | predicted MiB | measured MiB | error | at |\n| --- | --- | --- | --- | --- | --- |")
    with cpu_threads(options.threads):
        for name in smallest_models(timm, options.modules):
            errors = []
            for side in sides(timm, name, options.size):
                try:
                    print(row(name, side, Settings(mode=options.mode, batch=options.batch)), flush=True)
                    break
                except Exception as error:
                    errors.append(first_line(error))
            else:
                print(f"| {name} | {'; '.join(errors)} |||||", flush=True)


if __name__ == "__main__":
    main()
