"""``csrc/cuda/report.py``: what it reads from ptxas, what it complains about; and the kernels of this build."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def report():
    spec = importlib.util.spec_from_file_location("cuda_report", ROOT / "csrc/cuda/report.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


_LOG = """\
ptxas info    : Compiling entry function '_ZN4sola4cuda41_GLOBAL__N__f4b7e429_9_gather_cu_f26d485f6gatherINS0_4Bf16ELi64EEEvNS0_12GatherParamsE' for 'sm_90'
ptxas info    : Function properties for whatever
    {stack} bytes stack frame, {spills} bytes spill stores, 0 bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers
"""
_KEY = ("gather::gather<Bf16, 64>", "sm_90")


@pytest.mark.parametrize(
    ("stack", "spills", "registers", "sentence"),
    [
        (0, 0, 90, None),
        (0, 0, 100, None),
        (0, 0, 101, "uses 101 registers, 100 are allowed"),
        (8, 4, 90, "spills: 4 bytes, stack frame 8 bytes"),
        (8, 0, 90, "spills: 0 bytes, stack frame 8 bytes"),
    ],
)
def test_a_spill_or_too_many_registers_are_refused(report, tmp_path, stack, spills, registers, sentence) -> None:
    (tmp_path / "gather.cu.o.log").write_text(_LOG.format(stack=stack, spills=spills, registers=registers))
    usages = report.read_logs(tmp_path)
    assert list(usages) == [_KEY]
    found = list(report.complaints(usages, {_KEY: 100}))
    assert found == [] if sentence is None else sentence in found[0]


def test_kernels_must_be_in_the_table_and_in_the_build(report, tmp_path) -> None:
    (tmp_path / "gather.cu.o.log").write_text(_LOG.format(stack=0, spills=0, registers=90))
    usages = report.read_logs(tmp_path)
    assert "is not in registers.txt" in next(report.complaints(usages, {}))
    assert "has no such kernel" in next(report.complaints({}, {_KEY: 100}))
    report.write_table(usages, tmp_path / "table.txt")
    assert report.read_table(tmp_path / "table.txt") == {_KEY: 90}


def test_a_kernel_of_one_architecture_is_in_the_table_for_that_alone(report, tmp_path) -> None:
    log = _LOG.format(stack=0, spills=0, registers=90)
    (tmp_path / "gather.cu.o.log").write_text(log)
    (tmp_path / "other.cu.o.log").write_text(log.replace("sm_90", "sm_90a"))
    usages = report.read_logs(tmp_path)
    report.write_table(usages, tmp_path / "table.txt")
    table = report.read_table(tmp_path / "table.txt")
    assert table == {_KEY: 90, ("other::gather<Bf16, 64>", "sm_90a"): 90}
    assert list(report.complaints(usages, table)) == []


def test_the_kernels_of_this_build_keep_to_the_table(report) -> None:
    usages = report.read_logs(ROOT / "build")
    if not usages:
        pytest.skip("built without nvcc")
    assert list(report.complaints(usages, report.read_table(report.TABLE))) == []
    assert list(report.serialized(ROOT / "build")) == []
    assert list(report.warnings(ROOT / "build")) == []


def test_serialized_products_are_refused(report, tmp_path) -> None:
    note = (
        "ptxas info    : (C7513) Potential Performance Loss: wgmma.mma_async instructions are serialized due to non wgmma "
        "instructions defining input registers of a wgmma in the function '_ZN4sola4cuda6gatherENS0_12GatherParamsE'\n"
    )
    (tmp_path / "some_hopper.cu.o.log").write_text(note)
    assert list(report.serialized(tmp_path)) == ["gather in some_hopper has serialized wgmma instructions"]


def test_warnings_are_refused(report, tmp_path) -> None:
    warning = 'gather.cu(7): warning #177-D: variable "x" was declared but never referenced'
    (tmp_path / "gather.cu.o.log").write_text(warning + "\n" + _LOG.format(stack=0, spills=0, registers=90))
    assert list(report.warnings(tmp_path)) == ["gather: " + warning]
