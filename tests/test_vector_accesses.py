"""Accesses to global memory of 16 bytes stay whole: nvcc takes some apart into four of 4, which no result shows."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parent.parent / "csrc"
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
# bound by memory, and every access of whole vectors: no kernel of theirs that has any reads or writes words beside them
UNITS = ["shift_mix", "layer_norm"]
_WORD = re.compile(r"\b(ld|st)\.global(?:\.nc)?\.[bfu]32\s+[^;]*?\[(%\w+)(?:\+(-?\d+))?\]")
_VECTOR = re.compile(r"\b(ld|st)\.global(?:\.nc)?\.v4\.[bfu]32\b")


def kernels(ptx: str) -> dict[str, str]:
    """Name → body."""
    return {entry.split("(")[0]: entry for entry in ptx.split(".entry ")[1:]}


def taken_apart(body: str) -> list[str]:
    """Which accesses of a kernel are four neighbouring words off one register: ``ld %rd4+16``."""
    places = defaultdict(set)
    for kind, base, offset in _WORD.findall(body):
        places[kind, base].add(int(offset or 0))
    return [
        f"{kind} {base}+{offset}"
        for (kind, base), offsets in places.items()
        for offset in sorted(offsets)
        if offset % 16 == 0 and all(offset + 4 * i in offsets for i in range(4))
    ]


def test_that_it_is_seen() -> None:
    words = "".join(f"ld.global.nc.u32 %r{i}, [%rd4+{16 + 4 * i}];\n" for i in range(4))
    assert taken_apart(words) == ["ld %rd4+16"]
    assert taken_apart(words.replace("+20]", "+36]")) == []
    assert taken_apart("st.global.v4.u32 [%rd4+16], {%r1, %r2, %r3, %r4};") == []


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize("unit", UNITS)
def test_vectors_stay_whole(unit: str, tmp_path: Path) -> None:
    ptx = tmp_path / "unit.ptx"
    command = [NVCC, "-std=c++17", "-O3", f"-I{CSRC}", "-ptx", "-arch=compute_90", CSRC / f"cuda/{unit}.cu", "-o", ptx]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = kernels(ptx.read_text())
    vectorial = {name: body for name, body in found.items() if _VECTOR.search(body)}
    assert len(vectorial) >= 6  # forward and backward of three types
    assert {name: parts for name, body in vectorial.items() if (parts := taken_apart(body))} == {}
