"""Compiles the CUDA kernels and their host sides for the CPU, into a library of torch operators: ``sola_emulated``."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from ninja.ninja_syntax import Writer
from torch.utils import cpp_extension

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# sanitizers are asked for in the same way as of setup.py
EXTRA_FLAGS, EXTRA_LIBS = os.environ.get("CXXFLAGS", ""), os.environ.get("LDFLAGS", "")
# -DSOLA_RACES watches every access of the kernels (races.h)
RACES = "-DSOLA_RACES" in EXTRA_FLAGS
# compute capability, such as 90, whose PTX runs in the place of the kernels' own source (ptx.py)
PTX = os.environ.get("SOLA_PTX", "")
VARIANTS = {"-races": RACES, "-sanitized": not RACES and "sanitize" in EXTRA_FLAGS, f"-ptx{PTX}": PTX}
FOLDER = ROOT / "build" / ("emulator" + "".join(name for name, wanted in VARIANTS.items() if wanted))
# -ffp-contract=off: fmaf stays one rounding, a product and a sum stay two
FLAGS = "-std=c++20 -O2 -fPIC -ffp-contract=off -Wall -Wextra -Werror -Wno-unknown-pragmas"
# of kernels: their calls into the sanitizers' libraries end in limits.cpp and races.cpp
WATCHED = "-fsanitize=alignment -Wno-array-bounds" + (" -fsanitize=thread" if RACES else "")
# of what ptx.py writes: no human reads it
TRANSLATED = "-O1 -w"
# as in setup.py
HOPPER_TARGET, CLUSTER_TARGET = "90a", "90"


@contextmanager
def alone() -> Iterator[None]:
    """Lets a second build wait: ninja's records of two at once are wrong, and one would load what the other links."""
    with (FOLDER / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another build in {FOLDER}", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build() -> Path:
    """Compile what has changed; returns the library."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    target = FOLDER / "libsola_emulated.so"
    jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
    with alone():
        _write_rules(target)
        subprocess.run([sys.executable, "-m", "ninja", "--quiet", "-C", str(FOLDER), *jobs], check=True)
    return target


def _write_rules(target: Path) -> None:
    cxx = os.environ.get("CXX") or shutil.which("g++") or "c++"
    torch_flags = [f"-isystem{folder}" for folder in cpp_extension.include_paths()]
    torch_flags.append(f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}")
    libs = [f"-L{folder}" for folder in cpp_extension.library_paths()] + ["-ltorch", "-ltorch_cpu", "-lc10"]
    with (FOLDER / "build.ninja").open("w") as file:
        ninja = Writer(file, width=120)
        command = f"{cxx} {FLAGS} {EXTRA_FLAGS} -I{HERE} -I{ROOT / 'csrc'} $flags -MMD -MF $out.d -c -x c++ $in -o $out"
        ninja.rule("cxx", command, depfile="$out.d", deps="gcc", description="$in")
        ninja.rule("link", f"{cxx} -shared $in -o $out {' '.join(libs)} {EXTRA_LIBS}", description="$out")
        sources = dict.fromkeys(sorted(HERE.glob("*.cpp")), "")
        sources[HERE / "library.cpp"] = " ".join(torch_flags)
        # device.cu asks the CUDA runtime for devices, which only the real one knows
        kernels = [path for path in sorted((ROOT / "csrc/cuda").glob("*.cu")) if path.name != "device.cu"]
        if PTX:
            kernels = [_translated(ninja, path) for path in kernels]
        sources |= dict.fromkeys([*kernels, *HERE.glob("selftest*.cpp")], WATCHED)
        sources |= dict.fromkeys(kernels, TRANSLATED) if PTX else {}
        objects = []
        for source, flags in sources.items():
            objects += ninja.build(f"{source.name}.o", "cxx", str(source), variables={"flags": flags})
        ninja.build(str(target), "link", objects)


def _translated(ninja: Writer, unit: Path) -> Path:
    """The C++ that nvcc's PTX of a unit becomes."""
    ptx, source = FOLDER / f"{unit.stem}.ptx", FOLDER / f"{unit.stem}.cpp"
    target = PTX
    if unit.stem.endswith("_hopper"):
        target = HOPPER_TARGET
    elif unit.stem.endswith("_cluster"):
        target = max(PTX, CLUSTER_TARGET, key=int)
    nvcc = f"nvcc -std=c++17 -O3 -I{ROOT / 'csrc'} -arch=compute_{target} -ptx -MD -MF $out.d $in -o $out"
    ninja.rule(f"ptx_{unit.stem}", nvcc, depfile="$out.d", deps="gcc", description="$out")
    ninja.rule(f"translate_{unit.stem}", f"{sys.executable} {HERE / 'ptx.py'} {unit} $in $out", description="$out")
    ninja.build(str(ptx), f"ptx_{unit.stem}", str(unit))
    ninja.build(
        str(source),
        f"translate_{unit.stem}",
        str(ptx),
        implicit=[str(HERE / "ptx.py"), str(HERE / "ptx_syntax.py"), str(ROOT / "csrc/cuda/report.py")],
    )
    return source


if __name__ == "__main__":
    print(build())
