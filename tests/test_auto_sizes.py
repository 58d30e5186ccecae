"""``--res auto``: the sizes that memory and time allow."""

import json

import pytest

from sola_profile import auto_sizes
from sola_profile.auto_sizes import Candidate, choose, sides
from sola_profile.case import Resolution, parse_resolutions


def candidates(run_s=(0.01, 0.02, 0.04, 0.08)):
    return [
        Candidate(Resolution(side, side), side * 1000, s) for side, s in zip((224, 320, 448, 640), run_s, strict=True)
    ]


@pytest.mark.parametrize(
    ("free_bytes", "budget_s", "chosen", "why"),
    [
        (10**9, 1000, "224,320,448,640", "a side has at most"),
        (450_000, 1000, "224,320,448", "640 needs 640,000 bytes and 450,000 are free"),
        (1, 1000, "224", "320 needs"),
        (10**9, 16 * 0.07 * 2, "224,320,448", "exceed 50% of 2.24 s"),
        (10**9, 1e-9, "224", "320, ≈ 0.02 s each"),
    ],
)
def test_sizes_are_chosen_within_memory_and_time(monkeypatch, free_bytes, budget_s, chosen, why):
    monkeypatch.setattr(auto_sizes, "RUNS", 16)
    found = choose(candidates(), free_bytes, budget_s)
    assert found.resolutions == parse_resolutions(chosen)
    assert why in found.why
    assert choose(candidates(), free_bytes, budget_s) == found


def test_sides_are_a_geometric_row_of_multiples():
    found = [side for side, _ in zip(sides(32), range(7), strict=False)]
    assert found == [224, 320, 448, 640, 896, 1280, 1792]
    assert all(side % 14 == 0 for side in sides(14))
    assert max(sides(32)) <= 65_536


def test_the_command_says_what_it_chose(sola_profile, monkeypatch, tmp_path):
    (tmp_path / "sized_zoo.py").write_text("import torch\ndef plain():\n    return torch.nn.Conv2d(3, 4, 1)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(auto_sizes, "available_bytes", lambda device: 60 * 2**20)
    # with one thread PyTorch computes this convolution without copies
    arguments = ("--threads", "1", "--res", "auto", "--no-report", "--no-measure", "--json", "-")
    code, out, err = sola_profile("--model", "sized_zoo:plain", *arguments)
    assert code == 0
    sizes = [row["height"] for row in json.loads(out)["models"][0]["rows"]]
    assert f"sizes: {','.join(map(str, sizes))}; " in err
    assert "62,914,560 are free" in err
    assert sizes == [224, 320, 448, 640, 896, 1280]
