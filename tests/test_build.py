"""The build, by use: from the source archive, in place, as a wheel; and what it says when something is missing."""

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# what is no source; Python may be writing its caches while they would be copied
IGNORED = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.so", "*.egg-info", "reports")
# of processes that take seconds: only what hangs takes so long, on however busy a machine
TIMEOUT_S = 900

# a call of every op, forward and backward, by whatever installation is found
_USE = """
import torch
import sola_vision
from sola_vision import ops
q = torch.randn(1, 70, 2, 16, requires_grad=True)
k = torch.randn(1, 70, 8, requires_grad=True)
decay = torch.rand(8)
for out in (ops.softmax_attention(q, q, q), ops.linear_attention(q, q, q, causal=True), ops.wkv(k, k, decay, decay)):
    out.sum().backward()
print(sola_vision.__file__, ops.build_info()["version"])
"""


def _run(*command: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    # whatever leads to another installation is taken out
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = {**inherited, "SOLA_CUDA": "0", "PYTHONDONTWRITEBYTECODE": "1", **env}
    return subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def _succeed(*command: object, cwd: Path, **env: str) -> str:
    run = _run(*command, cwd=cwd, **env)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    return run.stdout


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive, made and unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    tree = folder / "tree"
    shutil.copytree(ROOT, tree, ignore=IGNORED)
    _succeed(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", folder, cwd=tree)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    (unpacked,) = (path for path in folder.iterdir() if path.is_dir() and path != tree)
    return unpacked


def test_the_source_archive_holds_what_a_build_needs(unpacked: Path) -> None:
    names = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*")}
    for source in (ROOT / "csrc").rglob("*.*"):
        assert str(source.relative_to(ROOT)) in names
    assert {"setup.py", "pyproject.toml", "LICENSE", "README.md", "sola_vision/py.typed"} <= names
    assert not any(name.endswith((".so", ".o")) for name in names)


@pytest.mark.slow
def test_build_in_place_then_a_wheel_in_an_empty_environment(unpacked: Path, tmp_path: Path) -> None:
    """One compilation serves both ways: ninja has nothing left to do for the wheel."""
    # what runs the other tests was optimized
    output = _succeed(sys.executable, "setup.py", "build_ext", "--inplace", cwd=unpacked, CXXFLAGS="-O0")
    assert "sola-vision: CUDA off (SOLA_CUDA=0)" in output
    used = _succeed(sys.executable, "-c", _USE, cwd=unpacked, PYTHONPATH=str(unpacked))
    assert used.startswith(str(unpacked))

    to_wheel = ("-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path)
    _succeed(sys.executable, *to_wheel, cwd=unpacked, CXXFLAGS="-O0")
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.startswith("sola_vision/_C") for name in names)
    assert any(name == "sola_profile/cli.py" for name in names)
    assert not any(name.startswith(("csrc", "tests")) for name in names)

    empty = tmp_path / "venv"
    _succeed(sys.executable, "-m", "venv", empty, cwd=tmp_path)
    python = empty / "bin" / "python"
    _succeed(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    # torch and the other requirements come from the environment that runs the tests
    site = next((empty / "lib").glob("python*/site-packages"))
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    used = _succeed(python, "-c", _USE, cwd=tmp_path)
    assert used.startswith(str(empty))
    assert "Usage: sola-profile" in _succeed(empty / "bin" / "sola-profile", "--help", cwd=tmp_path)


def _refused(unpacked: Path, **env: str) -> str:
    run = _run(sys.executable, "setup.py", "--quiet", "build_ext", "--build-temp", "elsewhere", cwd=unpacked, **env)
    assert run.returncode != 0
    assert "sola-vision can't be built" in run.stderr
    assert "Traceback" not in run.stderr
    return run.stderr


def test_no_compiler(unpacked: Path) -> None:
    text = _refused(unpacked, CXX="no-such-compiler")
    assert "no C++ compiler is on the PATH (looked for no-such-compiler)" in text
    assert "apt-get install g++" in text


def test_a_compiler_behind_a_cache_and_with_flags(unpacked: Path, tmp_path: Path) -> None:
    for name in ("ccache", "some-g++"):
        (tmp_path / name).symlink_to(shutil.which("false") or "/bin/false")
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert "looked for ccache no-such-compiler" in _refused(unpacked, CXX="ccache no-such-compiler", PATH=path)
    assert "the compiler reported the errors above" in _refused(unpacked, CXX="ccache some-g++ -m64", PATH=path)
    rules = (unpacked / "elsewhere" / "build.ninja").read_text()
    assert f"{tmp_path}/ccache {tmp_path}/some-g++ -m64 -std=c++20" in rules.replace("$\n      ", "")


# a compiler that notes what it is asked for, and does it at once
COMPILER = """#!/bin/sh
for word; do
    case "$before" in -o) touch "$word";; -MF) echo "x:" > "$word";; -c) echo "$word" >> {log};; esac
    before=$word
done
"""


def _fake_torch(folder: Path, version: str) -> None:
    package = folder / "torch"
    (package / "utils").mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text(f"__version__ = '{version}'\ncompiled_with_cxx11_abi = lambda: True\n")
    (package / "utils" / "__init__.py").write_text("")
    (package / "utils" / "cpp_extension.py").write_text("include_paths = library_paths = lambda: []\n")


def test_another_torch_in_place_of_the_old_one_compiles_what_includes_it(unpacked: Path, tmp_path: Path) -> None:
    tree, log, compiler = tmp_path / "tree", tmp_path / "log", tmp_path / "g++"
    shutil.copytree(unpacked, tree)
    compiler.write_text(COMPILER.format(log=log))
    compiler.chmod(0o755)

    def compiled(version: str) -> set[str]:
        log.write_text("")
        _fake_torch(tmp_path, version)
        build = (sys.executable, "setup.py", "build_ext", "--inplace")
        _succeed(*build, cwd=tree, PYTHONPATH=str(tmp_path), CXX=str(compiler))
        return {Path(line).name for line in log.read_text().splitlines()}

    first = compiled("2.98")
    assert {"bindings.cpp", "wkv_forward.kernel.cpp"} <= first
    assert not compiled("2.98")
    assert compiled("2.99") == {name for name in first if not name.endswith(".kernel.cpp")}


def test_a_second_build_waits_for_the_first(unpacked: Path) -> None:
    (unpacked / "elsewhere").mkdir(exist_ok=True)
    with (unpacked / "elsewhere" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = subprocess.Popen(
            [sys.executable, "setup.py", "--quiet", "build_ext", "--build-temp", "elsewhere"],
            cwd=unpacked,
            env={**os.environ, "CXX": "no-such-compiler"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert second.stdout is not None
        assert second.stdout.readline().startswith("sola-vision: waiting for another build in")
        assert second.poll() is None
    _, errors = second.communicate(timeout=TIMEOUT_S)
    assert "no C++ compiler" in errors


def test_no_torch(unpacked: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('No module named torch')")
    text = _refused(unpacked, PYTHONPATH=str(tmp_path))
    assert "torch does not import here" in text
    assert "pip install --no-build-isolation" in text


def test_torch_too_old(unpacked: Path, tmp_path: Path) -> None:
    _fake_torch(tmp_path, "2.4.1")
    assert "torch 2.4.1 is too old" in _refused(unpacked, PYTHONPATH=str(tmp_path))


def test_setuptools_too_old(unpacked: Path, tmp_path: Path) -> None:
    # the one that comes with Python 3.11's venv, which `pip install setuptools` leaves as it is
    (tmp_path / "sitecustomize.py").write_text("import setuptools; setuptools.__version__ = '65.5.0'")
    text = _refused(unpacked, PYTHONPATH=str(tmp_path))
    assert "setuptools 65.5.0 is too old" in text
    assert 'pip install "setuptools>=77"' in text


def test_cuda_demanded_without_nvcc(unpacked: Path, tmp_path: Path) -> None:
    for tool in ("g++", "c++", "env"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or shutil.which("env"))
    text = _refused(unpacked, SOLA_CUDA="1", PATH=str(tmp_path), CUDA_HOME=str(tmp_path))
    assert "SOLA_CUDA=1 demands CUDA" in text
    assert "SOLA_CUDA=0" in text


def _nvcc(folder: Path, script: str) -> str:
    """A PATH on which this is nvcc."""
    tool = folder / "nvcc"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


_TOO_OLD = "echo \"nvcc fatal   : Unsupported gpu architecture 'compute_90a'\" >&2; exit 1"


def test_cuda_demanded_of_an_nvcc_that_is_too_old(unpacked: Path, tmp_path: Path) -> None:
    text = _refused(unpacked, SOLA_CUDA="1", PATH=_nvcc(tmp_path, _TOO_OLD))
    assert f"{tmp_path}/nvcc with" in text
    assert "can't be used: nvcc fatal   : Unsupported gpu architecture 'compute_90a'" in text
    assert "CUDA 12 or newer knows sm_90a" in text


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (_TOO_OLD, "can't be used: nvcc fatal   : Unsupported gpu architecture 'compute_90a'"),
        ("exit 3", "can't be used: no reason given"),
    ],
)
def test_an_nvcc_that_nobody_asked_for_and_that_cannot_be_used(
    unpacked: Path, tmp_path: Path, script: str, reason: str
) -> None:
    command = (sys.executable, "setup.py", "--quiet", "build_ext", "--build-temp", "elsewhere")
    run = _run(*command, cwd=unpacked, SOLA_CUDA="", CXX="false", PATH=_nvcc(tmp_path, script))
    assert "sola-vision: CUDA off (" in run.stdout
    assert reason in run.stdout
    # the build went on, to a compiler that is none
    assert "the compiler reported the errors above" in run.stderr


def test_unknown_cuda_wish(unpacked: Path) -> None:
    assert "SOLA_CUDA='yes' is neither 0 nor 1" in _refused(unpacked, SOLA_CUDA="yes")


def _copy_sources(folder: Path) -> None:
    shutil.copytree(ROOT / "sola_vision", folder / "sola_vision", ignore=IGNORED)


def _import_from(folder: Path, statement: str) -> subprocess.CompletedProcess[str]:
    """Run a statement that finds the package in ``folder``, and its dependencies where they are installed."""
    # -S leaves out the hook of an editable install, which would find the extension elsewhere
    return _run(sys.executable, "-S", "-c", statement, cwd=folder, PYTHONPATH=sysconfig.get_path("purelib"))


def test_ops_without_the_extension(tmp_path: Path) -> None:
    """A tree that was never built: specs work, ops say how to build them."""
    _copy_sources(tmp_path)
    assert _import_from(tmp_path, "import sola_vision; sola_vision.get_spec('sola_t')").returncode == 0
    run = _import_from(tmp_path, "import sola_vision.ops")
    assert run.returncode != 0
    assert "is not built" in run.stderr
    assert "python setup.py build_ext --inplace" in run.stderr


def test_ops_with_a_half_built_extension(tmp_path: Path) -> None:
    _copy_sources(tmp_path)
    (tmp_path / "sola_vision" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}").write_bytes(b"not a library")
    run = _import_from(tmp_path, "import sola_vision.ops")
    assert run.returncode != 0
    assert "does not load" in run.stderr
    assert "python setup.py build_ext --inplace" in run.stderr
