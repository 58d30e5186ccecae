"""Compares what ptxas says of the kernels of the last build with csrc/cuda/registers.txt; warnings, spills, surprises fail.

python csrc/cuda/report.py [--write] [FOLDER]: FOLDER holds the logs that setup.py leaves, build by default.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TABLE = Path(__file__).with_name("registers.txt")
HEADER = """\
# Registers per thread that each kernel may use, by architecture: what the last accepted build needed.
# `make cuda-report` fails on more, on a spill, a stack frame or a warning, and on a kernel that isn't here; `--write` rewrites it.
"""
# in the place of a number: this kernel isn't compiled for this architecture
NOT_BUILT = "-"
_ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for '(?P<target>sm_\d+a?)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<spills>\d+) bytes spill stores.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)

Key = tuple[str, str]


@dataclass(frozen=True)
class Usage:
    """Of one kernel on one architecture: registers per thread, bytes of stack and of spilled registers."""

    registers: int
    stack_bytes: int
    spill_bytes: int


def readable(names: list[str]) -> dict[str, str]:
    """``forward<Bf16, 64>`` for mangled names; needs c++filt, which comes with every compiler."""
    plain = subprocess.run(["c++filt", "-p"], input="\n".join(names), text=True, capture_output=True, check=True)
    scope = re.compile(r"sola::(cuda::)?(\(anonymous namespace\)::|_GLOBAL__N__\w+::)?")
    return {name: scope.sub("", text) for name, text in zip(names, plain.stdout.splitlines(), strict=True)}


def read_logs(folder: Path) -> dict[Key, Usage]:
    """(file::kernel, architecture) → usage, of every log below the folder."""
    entries = [
        (log.name.removesuffix(".cu.o.log"), match)
        for log in sorted(folder.rglob("*.cu.o.log"))
        for match in _ENTRY.finditer(log.read_text())
    ]
    names = readable(sorted({entry["name"] for _, entry in entries}))
    return {
        (f"{unit}::{names[entry['name']]}", entry["target"]): Usage(
            int(entry["registers"]), int(entry["stack"]), int(entry["spills"])
        )
        for unit, entry in entries
    }


def serialized(folder: Path) -> Iterator[str]:
    """Kernels whose asynchronous products wait for each other, which ptxas says in a note and not in a warning."""
    for log in sorted(folder.rglob("*.cu.o.log")):
        for name in re.findall(r"wgmma\.mma_async instructions are serialized .*? function '(\S+?)'", log.read_text()):
            yield f"{readable([name])[name]} in {log.name.split('.')[0]} has serialized wgmma instructions"


def warnings(folder: Path) -> Iterator[str]:
    """What nvcc and its parts warned of."""
    for log in sorted(folder.rglob("*.cu.o.log")):
        for line in log.read_text().splitlines():
            if re.search(r"\bwarning\b", line):
                yield f"{log.name.split('.')[0]}: {line}"


def read_table(path: Path) -> dict[Key, int]:
    """(kernel, architecture) → registers allowed."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    targets = lines[0].split()
    table = {}
    for line in lines[1:]:
        *numbers, name = line.split(maxsplit=len(targets))
        pairs = zip(targets, numbers, strict=True)
        table.update({(name, target): int(number) for target, number in pairs if number != NOT_BUILT})
    return table


def write_table(usages: Mapping[Key, Usage], path: Path) -> None:
    """One line per kernel, numbers first."""
    targets = sorted({target for _, target in usages})
    lines = ["  ".join(targets)]
    for name in sorted({name for name, _ in usages}):
        known = (usages.get((name, target)) for target in targets)
        numbers = [NOT_BUILT if usage is None else str(usage.registers) for usage in known]
        lines.append("  ".join([*map(str.rjust, numbers, map(len, targets)), name]))
    path.write_text(HEADER + "\n".join(lines) + "\n")


def complaints(usages: Mapping[Key, Usage], allowed: Mapping[Key, int]) -> Iterator[str]:
    """Every reason to refuse a build, in a sentence."""
    for (name, target), usage in sorted(usages.items()):
        if usage.spill_bytes or usage.stack_bytes:
            yield f"{name} on {target} spills: {usage.spill_bytes} bytes, stack frame {usage.stack_bytes} bytes"
        limit = allowed.get((name, target))
        if limit is None:
            yield f"{name} on {target} is not in {TABLE.name}"
        elif usage.registers > limit:
            yield f"{name} on {target} uses {usage.registers} registers, {limit} are allowed"
    for name, target in sorted(allowed.keys() - usages.keys()):
        yield f"{name} on {target} is in {TABLE.name}, and the build has no such kernel"


def main(arguments: list[str]) -> int:
    """0 when the build keeps to the table."""
    folders = [Path(argument) for argument in arguments if argument != "--write"]
    folder = folders[0] if folders else ROOT / "build"
    usages = read_logs(folder)
    if not usages:
        print("no log of ptxas found: build with nvcc first", file=sys.stderr)
        return 1
    if "--write" in arguments:
        write_table(usages, TABLE)
    found = [*complaints(usages, read_table(TABLE)), *serialized(folder), *warnings(folder)]
    for complaint in found:
        print(complaint)
    most = max(usage.registers for usage in usages.values())
    print(f"{len(usages)} kernels, {most} registers at most, {len(found)} complaints")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
