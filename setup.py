"""Builds sola_vision._C from csrc with ninja: C++ always, CUDA kernels when nvcc is found (SOLA_CUDA=0/1 decides)."""

import fcntl
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import NoReturn

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "sola_vision/version.py").read_text())[1]
OLDEST_TORCH = (2, 11)
OLDEST_SETUPTOOLS = 77

# -fno-math-errno and -fno-trapping-math let loops over exp and selects become vectors; NaN and Inf keep their meaning
CXX_FLAGS = ("-std=c++20 -O3 -fPIC -fvisibility=hidden -fno-math-errno -fno-trapping-math -ffp-contract=fast "
             "-Wall -Wextra -Wno-unknown-pragmas -Werror=return-type")  # fmt: skip
# every *.kernel.cpp is compiled once per instruction set; the best one is chosen at load (csrc/cpu/isa.cpp)
X86_64 = {
    "baseline": "",
    "avx2": "-mavx2 -mfma -mf16c -mbmi2",
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c -mbmi2 -mprefer-vector-width=512",
}
INSTRUCTION_SETS = X86_64 if platform.machine().lower() in ("x86_64", "amd64") else {"baseline": ""}
CUDA_TARGETS = ("80", "90")
# units whose instructions not every architecture has: *_hopper.cu are for this one alone, *_cluster.cu for 9.0 and later
HOPPER_TARGET = "90a"
# --threads: architectures of one unit at once, which shortens the longest where there are many cores
# their warnings stay in logs, where csrc/cuda/report.py refuses them: a newer nvcc may know more of them
NVCC_FLAGS = "-std=c++17 -O3 -Xcompiler=-fPIC,-fvisibility=hidden -cudart=static -Xptxas=-v --threads=4"


def fail(reason: str, remedy: str) -> NoReturn:
    raise SystemExit(f"\nsola-vision can't be built: {reason}\n  {remedy}\n")


def find_torch():
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        remedy = "Install torch >= 2.11 first, then build with `pip install --no-build-isolation .`"
        fail(f"torch does not import here ({error}).", remedy)
    if tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) < OLDEST_TORCH:
        fail(f"torch {torch.__version__} is too old.", "Install torch >= 2.11 and build again.")
    return torch, cpp_extension


def find_compiler() -> str:
    """The command that compiles C++: what CXX says, which may begin with a cache and have flags, or the first there is."""
    wish = os.environ.get("CXX", "").split()
    for command in [wish] if wish else [["g++"], ["clang++"], ["c++"]]:
        tools = [shutil.which(tool) for tool in tools_of(command)]
        if all(tools):
            return " ".join([*tools, *command[len(tools) :]])
    fail(f"no C++ compiler is on the PATH (looked for {' '.join(wish) or 'g++, clang++, c++'}).",
         "Install one (Debian and Ubuntu: apt-get install g++) or name it in CXX.")  # fmt: skip


def tools_of(command: list[str]) -> list[str]:
    """The programs that it runs: caches, and behind them the compiler."""
    caches = [*takewhile(lambda word: Path(word).name in ("ccache", "sccache", "distcc"), command[:-1])]
    return command[: len(caches) + 1]


def gencode(target: str, code: str = "sm") -> str:
    return f"-gencode=arch=compute_{target},code={code}_{target}"


def why_not(nvcc: str, host: str) -> str:
    """What nvcc objects to before it reads anything: an architecture that it doesn't know, a host compiler; or nothing."""
    command = [nvcc, f"-ccbin={host}", *map(gencode, (*CUDA_TARGETS, HOPPER_TARGET)), "-E", "-x", "cu", os.devnull]
    try:
        probe = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{nvcc} does not start: {error.strerror}"
    said = [line.strip() for line in probe.stderr.splitlines() if re.search("error|fatal", line)]
    return f"{nvcc} with {host} can't be used: {said[0] if said else 'no reason given'}" if probe.returncode else ""


def find_nvcc(host: str) -> str | None:
    """The nvcc to use with this host compiler, or None; says in one line what was decided and why."""
    wish = os.environ.get("SOLA_CUDA", "")
    if wish not in ("", "0", "1"):
        fail(f"SOLA_CUDA={wish!r} is neither 0 nor 1.", "Unset it to build CUDA kernels where nvcc is found.")
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=os.environ.get("CUDA_HOME", "/usr/local/cuda") + "/bin")
    if wish == "1" and nvcc is None:
        fail("SOLA_CUDA=1 demands CUDA, and there is no nvcc on the PATH or in CUDA_HOME.",
             "Install the CUDA toolkit, set CUDA_HOME, or build with SOLA_CUDA=0.")  # fmt: skip
    nvcc, why = (None, "SOLA_CUDA=0") if wish == "0" else (nvcc, nvcc or "no nvcc found")
    if nvcc and (objection := why_not(nvcc, host)):
        if wish == "1":
            fail(objection, f"CUDA 12 or newer knows sm_{HOPPER_TARGET}; CXX names another host compiler.")
        nvcc, why = None, objection
    decision = f"on for sm_{' and sm_'.join(CUDA_TARGETS)}" if nvcc else "off"
    print(f"sola-vision: CUDA {decision} ({why})", flush=True)
    return nvcc


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Lets a second build wait: ninja's records of two at once are wrong, and later builds would keep old objects."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"sola-vision: waiting for another build in {folder}", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class NinjaBuild(build_ext):
    """Writes build.ninja, runs ninja, and leaves the library where setuptools wants it."""

    def build_extension(self, extension: Extension) -> None:
        target, folder = Path(self.get_ext_fullpath(extension.name)).resolve(), Path(self.build_temp).resolve()
        if self.editable_mode:  # where `build_ext --inplace` will look for the objects
            folder = ROOT / "build" / f"temp.{self.plat_name}-{sys.implementation.cache_tag}"
        for path in (folder, target.parent):
            path.mkdir(parents=True, exist_ok=True)
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        with alone_in(folder):
            torch, cpp_extension = find_torch()
            cxx = find_compiler()
            nvcc = find_nvcc(tools_of(cxx.split())[-1])
            self.write_ninja(folder / "build.ninja", target, torch, cpp_extension, cxx, nvcc)
            if subprocess.run([sys.executable, "-m", "ninja", "-C", str(folder), *jobs], check=False).returncode:
                fail("the compiler reported the errors above.", f"Its commands are in {folder / 'build.ninja'}.")

    def write_ninja(self, path, target, torch, cpp_extension, cxx, nvcc) -> None:
        import pybind11
        from ninja.ninja_syntax import Writer

        folders = [*cpp_extension.include_paths(), pybind11.get_include(), sysconfig.get_path("include")]
        host = ["-fopenmp", f'-DSOLA_VERSION=\\"{VERSION}\\"', *(f"-isystem{folder}" for folder in folders)]
        host += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
        # ninja sees neither a new torch in the old one's place nor its headers
        host += [f'-DSOLA_TORCH=\\"{torch.__version__}\\"']
        host += [f"-DSOLA_CUDA_TARGETS={','.join(CUDA_TARGETS)}"] if nvcc else []
        libs = [f"-L{folder}" for folder in cpp_extension.library_paths()] + ["-ltorch", "-ltorch_cpu", "-lc10"]
        libs.append(os.environ.get("LDFLAGS", ""))
        # nvcc knows where its own runtime library lies
        device = f"{nvcc} -ccbin={tools_of(cxx.split())[-1]}"
        linker = f"{device} -cudart=static -Xcompiler=-fopenmp" if nvcc else f"{cxx} -fopenmp"
        codes = [*map(gencode, CUDA_TARGETS), gencode(CUDA_TARGETS[-1], "compute")]
        hopper = [gencode(HOPPER_TARGET)]
        with path.open("w") as file:
            ninja = Writer(file, width=120)
            watch = {"depfile": "$out.d", "deps": "gcc", "description": "$in $note"}
            compile_to = f"-MMD -MF $out.d -I{CSRC} $flags -c $in -o $out"
            ninja.rule("cxx", f"{cxx} {CXX_FLAGS} {os.environ.get('CXXFLAGS', '')} {compile_to}", **watch)
            keep_log = "> $out.log 2>&1 || { cat $out.log; exit 1; }"
            ninja.rule("nvcc", f"{device} {NVCC_FLAGS} {compile_to} {keep_log}", **watch)
            ninja.rule("link", f"{linker} -shared $in -o $out {' '.join(libs)}", description="$out")
            objects = []
            for unit in sorted(path for path in CSRC.rglob("*.cpp") if nvcc or path.parent.name != "cuda"):
                variants = INSTRUCTION_SETS if unit.match("*.kernel.cpp") else {"host": " ".join(host)}
                for name, flags in variants.items():
                    note = {"flags": f"-DSOLA_ISA={name} {flags}", "note": name}
                    objects += ninja.build(f"{unit.parent.name}.{unit.stem}.{name}.o", "cxx", str(unit), variables=note)
            for source in sorted(CSRC.glob("cuda/*.cu")) if nvcc else []:
                some = hopper if source.match("*_hopper.cu") else codes[1:] if source.match("*_cluster.cu") else codes
                objects += ninja.build(f"{source.stem}.cu.o", "nvcc", str(source), variables={"flags": " ".join(some)})
            ninja.build(str(target), "link", objects)


# to compile in place needs nothing of pyproject.toml, whose form older setuptools don't know
if int(setuptools.__version__.split(".")[0]) < OLDEST_SETUPTOOLS:
    if "--inplace" not in sys.argv:
        fail(f"setuptools {setuptools.__version__} is too old.",
             f'Run `pip install "setuptools>={OLDEST_SETUPTOOLS}"` and build again.')  # fmt: skip
    setuptools.Distribution.parse_config_files = lambda *_, **__: None

setup(ext_modules=[Extension("sola_vision._C", sources=[])], cmdclass={"build_ext": NinjaBuild})
