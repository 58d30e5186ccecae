"""Which kernel computes softmax attention on CUDA: the list, what backends refuse, how users choose. Needs no device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sola_vision import ops
from sola_vision.ops._extension import extension
from sola_vision.ops._routes_file import read_routes

SDPA = ("flash", "cudnn", "efficient")
# a call that every backend takes
CALL = {"capability": 90, "dtype": "bfloat16", "D": 64, "V": 64, "N": 4096, "M": 4096, "causal": False}


@pytest.fixture(autouse=True)
def as_it_was():
    ops.softmax_backend("auto")
    yield
    ops.softmax_backend("auto")
    extension.set_softmax_routes([])


def route(**changes: Any) -> str:
    return extension.softmax_route(**{**CALL, **changes})[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("capability", [80, 90, 120])
def test_our_kernels_run_everything_until_another_is_measured(capability: int, dtype: str) -> None:
    for causal in (False, True):
        for tokens in (0, 1, 49, 65536):
            assert route(capability=capability, dtype=dtype, N=tokens, M=tokens, causal=causal) == "own"
    assert extension.softmax_route(**CALL) == ("own", "no backend of PyTorch has been measured faster")


def test_a_backend_that_is_asked_for_runs() -> None:
    for name in ("own", *SDPA):
        with ops.softmax_backend(name):
            assert ops.current_softmax_backend() == name
            assert extension.softmax_route(**CALL) == (name, "pinned")
    assert ops.current_softmax_backend() == "auto"


def _leave_two_contexts_by_an_error() -> None:
    with ops.softmax_backend("cudnn"), ops.softmax_backend("own"):
        assert ops.current_softmax_backend() == "own"
        raise KeyError


def test_contexts_nest_and_a_call_alone_stays() -> None:
    ops.softmax_backend("flash")
    with pytest.raises(KeyError):
        _leave_two_contexts_by_an_error()
    assert ops.current_softmax_backend() == "flash"


@pytest.mark.parametrize(("name", "near"), [("flsh", "'flash'"), ("cuDNN9", "'cudnn'"), ("math", "Known: auto, own")])
def test_an_unknown_name_is_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"softmax_backend: no backend is named '{name}'.*{near}"):
        ops.softmax_backend(name)
    assert ops.current_softmax_backend() == "auto"


@pytest.mark.parametrize(
    ("backends", "changes", "sentence"),
    [
        (SDPA, {"capability": 75}, "it needs compute capability 8.0 or later, got 7.5"),
        (SDPA[:2], {"dtype": "float32"}, "it takes bfloat16 and float16, got float32"),
        (SDPA[:2], {"V": 128}, "it takes q and v of one head dim, got 64 and 128"),
        (SDPA, {"D": 36, "V": 36}, "it takes head dims in multiples of 8, got 36 and 36"),
        (("efficient",), {"dtype": "float32", "D": 33}, "it takes head dims in multiples of 4, got 33 and 64"),
        (("cudnn",), {"D": 160, "V": 160}, "it takes head dims up to 128, got 160"),
        (("cudnn",), {"N": 196, "M": 196}, "it takes tokens in multiples of 128, got 196 and 196"),
        (SDPA, {"M": 128, "causal": True}, "when causal it takes as many keys as queries, got 4096 and 128"),
        (SDPA, {"H": 65536}, "it takes up to 65535 batches and heads, got 1 and 65536"),
        (SDPA, {"scale": 0.0}, "it takes a positive finite scale, got 0"),
        (SDPA, {"scale": float("inf")}, "it takes a positive finite scale, got inf"),
        (SDPA, {"aligned": False}, "it takes addresses and strides in multiples of 16 bytes"),
        (SDPA, {"expanded": True}, "it takes no expanded tensors"),
        (SDPA, {"far": True}, "it takes offsets within a batch up to 2^31 numbers"),
    ],
)
def test_what_a_backend_cannot_take_is_a_reason(backends: tuple[str, ...], changes: dict, sentence: str) -> None:
    for name in SDPA:
        with ops.softmax_backend(name):
            if name in backends:
                with pytest.raises(ValueError, match=rf"{name}: {sentence}".replace("^", r"\^")):
                    route(**changes)
            elif "dtype" not in changes:
                assert route(**changes) == name
    # the list passes over it
    extension.set_softmax_routes([extension.SoftmaxRoute(name, "a test") for name in backends])
    assert route(**changes) == "own"
    assert route() == backends[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "float32"},
        {"D": 96, "V": 96},
        {"D": 32, "V": 32},
        {"D": 64, "V": 32},
        {"capability": 80},
        {"capability": 100},
        {"N": 2048},
        {"M": 1024},
        {"causal": True},
    ],
)
def test_a_route_is_for_the_calls_that_it_names(changes: dict) -> None:
    measured = extension.SoftmaxRoute(
        "efficient",
        "1.2 × ours",
        lowest_capability=90,
        highest_capability=90,
        dtypes=["bfloat16"],
        least_dim=64,
        most_dim=80,
        least_queries=4096,
        least_keys=2048,
        causal=False,
    )
    extension.set_softmax_routes([measured])
    assert extension.softmax_route(**CALL) == ("efficient", "1.2 × ours")
    assert route(**changes) == "own"
    assert repr(measured) == (
        "efficient for bfloat16, head dim 64 to 80, 4096 queries or more, 2048 keys or more, not causal, "
        "compute capability 9.0 (1.2 × ours)"
    )


def test_the_first_route_that_matches_is_taken_and_ours_is_always_last() -> None:
    routes = [
        extension.SoftmaxRoute("own", "long", least_queries=16384),
        extension.SoftmaxRoute("cudnn", "middle", least_queries=4096),
        extension.SoftmaxRoute("flash", "short"),
    ]
    extension.set_softmax_routes(routes)
    assert [route(N=tokens) for tokens in (65536, 16384, 16256, 4096, 4095, 1, 0)] == (
        ["own", "own", "cudnn", "cudnn", "flash", "flash", "own"]
    )
    assert [entry.backend for entry in extension.softmax_routes()] == ["own", "cudnn", "flash", "own"]
    # the one before can't take it
    assert route(N=4100) == "flash"
    assert route(N=4100, dtype="float32") == "own"


def test_the_list_is_printed_in_its_order_with_what_passes_an_entry_over() -> None:
    extension.set_softmax_routes([extension.SoftmaxRoute("flash", "a test", least_dim=64, most_dim=64)])
    ops.softmax_backend("own")
    found = [entry[1:] for entry in extension.backends() if entry[0] == "softmax attention on CUDA"]
    names = ["SDPA flash for head dim 64", "own kernel", "SDPA cuDNN", "SDPA efficient"]
    assert [name for name, _, _ in found] == names
    assert [runs for _, runs, _ in found] == [False, bool(extension.cuda_devices()), False, False]
    assert all(reason for _, runs, reason in found if not runs)


@pytest.mark.parametrize("name", ["flash", "cudnn", "efficient", "own"])
def test_tensors_on_the_cpu_have_one_kernel(name: str) -> None:
    q, k, v = (torch.randn(1, 33, 2, 8, requires_grad=True) for _ in range(3))
    expected = ops.softmax_attention(q, k, v)
    with ops.softmax_backend(name):
        found = ops.softmax_attention(q, k, v)
        meta = ops.softmax_attention(q.to("meta"), k.to("meta"), v.to("meta"))
    assert torch.equal(found, expected)
    assert meta.shape == expected.shape


def test_a_compiled_function_runs_inside_and_outside() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda q: ops.softmax_attention(q, q, q) * 2, fullgraph=True, backend="aot_eager")
    q = torch.randn(1, 33, 2, 8)
    before = compiled(q)
    with ops.softmax_backend("flash"):
        assert torch.equal(compiled(q), before)


ENTRY = {"backend": "flash", "evidence": "1.3 × ours", "dtypes": ["bfloat16"], "least_queries": 4096, "causal": None}


def write(folder: Path, document: object) -> str:
    path = folder / "routes.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return str(path)


def test_a_file_of_routes_goes_before_the_built_in_list(tmp_path: Path) -> None:
    path = write(tmp_path, {"schema_version": 1, "device": "a GPU", "routes": [ENTRY]})
    extension.set_softmax_routes(read_routes(path, "routes"))
    assert route() == "flash"
    assert route(N=1024) == "own"


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ("{", "can't be read as JSON"),
        ([], "must have schema_version 1 and a list routes"),
        ({"schema_version": 2, "routes": []}, "must have schema_version 1 .* got 2"),
        ({"schema_version": 1}, "a list routes"),
        ({"schema_version": 1, "routes": [3]}, "route 1 must be an object, got 3"),
        ({"schema_version": 1, "routes": [ENTRY, {"backend": "own"}]}, "route 2 has no evidence"),
        ({"schema_version": 1, "routes": [{**ENTRY, "dtype": []}]}, "has the key 'dtype'; did you mean 'dtypes'"),
        ({"schema_version": 1, "routes": [{**ENTRY, "backend": "auto"}]}, "backend must be own, flash, .* got 'auto'"),
        ({"schema_version": 1, "routes": [{**ENTRY, "dtypes": ["float64"]}]}, "dtypes must be a list of float32"),
        ({"schema_version": 1, "routes": [{**ENTRY, "least_keys": -1}]}, "least_keys must be a number, got -1"),
        ({"schema_version": 1, "routes": [{**ENTRY, "least_keys": 2**70}]}, "least_keys must be a number"),
        ({"schema_version": 1, "routes": [{**ENTRY, "causal": 1}]}, "causal must be true, false or null, got 1"),
    ],
)
def test_a_bad_file_says_what_is_wrong(tmp_path: Path, document: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^here: .*{sentence}|^here: {sentence}"):
        read_routes(write(tmp_path, document), "here")


def start(**variables: str) -> subprocess.CompletedProcess[str]:
    script = (
        "from sola_vision import ops; from sola_vision.ops._extension import extension as e; "
        f"print(ops.current_softmax_backend(), e.softmax_route(**{CALL!r})[0])"
    )
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_the_environment_chooses_at_import(tmp_path: Path) -> None:
    path = write(tmp_path, {"schema_version": 1, "routes": [ENTRY]})
    assert start(SOLA_SOFTMAX_ROUTES=path).stdout.split() == ["auto", "flash"]
    assert start(SOLA_SOFTMAX_ROUTES=path, SOLA_SOFTMAX_BACKEND="cudnn").stdout.split() == ["cudnn", "cudnn"]


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"SOLA_SOFTMAX_BACKEND": "falsh"}, "SOLA_SOFTMAX_BACKEND: no backend is named 'falsh'; did you mean 'flash'"),
        ({"SOLA_SOFTMAX_ROUTES": "/nowhere.json"}, "SOLA_SOFTMAX_ROUTES=/nowhere.json: can't be read"),
    ],
)
def test_a_bad_environment_stops_the_import(variables: dict[str, str], sentence: str) -> None:
    run = start(**variables)
    assert run.returncode != 0
    assert sentence in run.stderr
