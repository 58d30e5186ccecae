"""Switches for what newer devices can do: names, contexts, the environment. Needs no device; results are the emulator's."""

import os
import subprocess
import sys

import pytest
import torch

from sola_vision import ops


@pytest.fixture(autouse=True)
def as_it_was():
    ops.cuda_without()
    yield
    ops.cuda_without()


def test_nothing_is_off_until_somebody_says_so() -> None:
    assert ops.cuda_features_off() == ()
    ops.cuda_without("pdl", "clusters")
    assert ops.cuda_features_off() == ("clusters", "pdl")
    # in the place of what was off before
    ops.cuda_without("wgmma")
    assert ops.cuda_features_off() == ("wgmma",)
    ops.cuda_without()
    assert ops.cuda_features_off() == ()


def test_a_context_ends_with_what_was_before() -> None:
    ops.cuda_without("pdl")
    with ops.cuda_without("clusters", "wgmma"):
        assert ops.cuda_features_off() == ("clusters", "wgmma")
        with ops.cuda_without():
            assert ops.cuda_features_off() == ()
    assert ops.cuda_features_off() == ("pdl",)


def test_an_unknown_name_changes_nothing() -> None:
    with pytest.raises(ValueError, match="cuda_without: no CUDA feature is named 'cluster'; did you mean 'clusters'"):
        ops.cuda_without("pdl", "cluster")
    assert ops.cuda_features_off() == ()


def test_tensors_on_the_cpu_are_not_affected() -> None:
    q, k, v = (torch.randn(1, 33, 2, 8) for _ in range(3))
    expected = ops.linear_attention(q, k, v)
    with ops.cuda_without(*ops.CUDA_FEATURES):
        assert torch.equal(ops.linear_attention(q, k, v), expected)


def start(value: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from sola_vision import ops; print(*ops.cuda_features_off())"],
        env={**os.environ, "SOLA_CUDA_WITHOUT": value},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.parametrize(("value", "off"), [("", []), ("wgmma", ["wgmma"]), (" pdl, clusters,", ["clusters", "pdl"])])
def test_the_environment_is_read_at_import(value: str, off: list[str]) -> None:
    assert start(value).stdout.split() == off


def test_a_bad_environment_stops_the_import() -> None:
    run = start("wgma")
    assert run.returncode != 0
    assert "SOLA_CUDA_WITHOUT: no CUDA feature is named 'wgma'; did you mean 'wgmma'" in run.stderr
