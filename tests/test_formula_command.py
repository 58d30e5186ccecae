"""``sola-profile formula`` and ``selftest`` as they are typed."""

import sys
from pathlib import Path

import pytest
from schemas import conforming

from sola_profile import selftest
from sola_profile.commands.formula import parse_bytes
from sola_profile.selftest import Counter, run, untrusted

ROOT = Path(__file__).parent.parent
SMALL = ("formula", "--model", "timm:resnet18", "--res", "224,100")


@pytest.fixture
def command(sola_profile):
    return sola_profile


def test_tables_and_sentences(command):
    code, out, err = command(*SMALL)
    assert code == 0
    assert "polynomials of timm:resnet18" in err
    lines = [line.strip() for line in out.splitlines()]
    assert "timm:resnet18  11.7 M parameters  input 1x3xHxW, float32, forward" in lines
    assert "MACs          = 144,576·N + 512,000" in lines
    assert any(line.startswith("Symbolic: one pass with H = 32·h and W = 32·w") for line in lines)
    rows = [line.split() for line in lines]
    at_100, at_224 = (next(row for row in rows if row and row[0] == size) for size in ("100", "224"))
    assert at_224[-3:] == ["formula", "2", "agree"]
    assert at_100[-3:] == ["counted", "2", "agree"]
    assert "Coverage: 100 % of the bytes moved belong to operators whose work is known." in lines


def test_blindness_is_said_aloud_and_does_not_fail_strict(command):
    code, out, _ = command("formula", "-m", "timm:vit_tiny_patch16_224", "--res", "256", "--by", "operator", "--strict")
    assert code == 0
    assert "1 agree, fvcore blind" in out
    assert "fvcore is blind to" in out
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "json:loads"), "json:loads can't be built without arguments (missing a required argument: 's')"),
        # a function in C says nothing of its arguments before it is called
        (("--model", "builtins:next"), "builtins:next can't be built: TypeError: next expected at least 1 argument"),
        (("--model", "sola_t", "--input", "3xHxW", "--res", "224"), "sola_t takes none of these sizes of 3xHxW"),
    ],
    ids=["wants arguments", "raises", "refuses all sizes"],
)
def test_a_model_that_cannot_be_had_is_bad_use(command, arguments, message):
    code, _, err = command("formula", *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_by_module_and_depth(command):
    _, out, _ = command(*SMALL, "--by", "module", "--depth", "1")
    modules = {line.split()[0] for line in out.splitlines() if line.strip()}
    assert {"conv1", "layer1", "layer4", "fc"} <= modules
    assert "layer1.0" not in modules


def test_latex_is_all_that_is_printed(command):
    code, out, _ = command(*SMALL, "--latex")
    assert code == 0
    assert out.startswith("\\begin{align*}\n\\mathrm{MACs} &= 144576 N + 512000 \\\\\n")
    assert out.endswith("\\end{align*}\n")


def test_json_has_every_polynomial_and_every_witness(command):
    _, out, err = command(*SMALL, "--json", "-", "--memory", "1GiB")
    assert "MACs by kind" in err
    document = conforming("formula", out)
    assert document["polynomials"]["macs"] == [
        {"h": 1, "w": 1, "coefficient": "37011456"},
        {"h": 0, "w": 0, "coefficient": "512000"},
    ]
    assert document["memory"]["fits"]["largest_square_side"] % 32 == 0
    by_size = {size["height"]: size for size in document["sizes"]}
    assert by_size[224]["macs"] == 37011456 * 49 + 512000
    assert not by_size[100]["from_formula"]
    assert all(set(one["macs"]) == {"formulas", "FlopCounterMode", "fvcore"} for one in by_size[100]["witnesses"])
    assert sum(call["calls"] for call in document["calls"]) >= len(document["calls"]) > 60


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--model", "timm:resnet81"), "did you mean 'resnet18'?"),
        (("--model", "sola_t", "--input", "3x224x224"), "the letters H and W once each"),
        (("--model", "sola_t", "--by", "kid"), "did you mean 'kind'?"),
        (("--model", "sola_t", "--depth", "0"), "expected a finite number above 0, got 0"),
        (("--model", "sola_t", "--memory", "8 elephants"), "expected a memory such as 8GiB"),
        (("--model", "sola_t", "--limit", "-1"), "expected a finite number above 0, got -1"),
        (("--model", "sola_t", "--dtype", "float31"), "did you mean 'float32'?"),
    ],
)
def test_bad_use_is_explained(command, arguments, sentence):
    code, _, err = command("formula", *arguments)
    assert code == 2
    assert sentence in " ".join(err.split())


@pytest.mark.parametrize(("text", "size"), [("8GiB", 2**33), ("1.5 kB", 1500), ("1e9", 10**9), (".5m", 500_000)])
def test_sizes_of_memory(text, size):
    assert parse_bytes(text) == size


def test_memory_is_predicted_measured_and_inverted(command):
    code, out, _ = command("formula", "-m", "sola_t", "--res", "64", "--memory", "64MiB", "--measure-memory")
    assert code == 0
    assert "Peak memory of the forward pass, predicted and measured" in out
    assert (
        "Bytes of activations at the peak = the highest of: 4,224·N (stages.0.blocks.1.mixer.output aten.mm); " in out
    )
    assert "In 64.00 MiB the largest square image that fits is 384, with" in out
    assert "A real run there took" in out


def test_strict_names_what_is_uncounted(command, tmp_path, monkeypatch):
    (tmp_path / "uncounted.py").write_text(
        "import torch\n"
        "class Solve(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return torch.linalg.solve(torch.eye(4), x[0, 0, :4, :4])\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    code, out, err = command("formula", "-m", "uncounted:Solve", "--res", "64", "--strict")
    assert code == 2
    assert "not known: aten::" in out
    assert "operators whose work is unknown: aten::" in err


def test_selftest_trusts_what_the_witnesses_rely_on(command):
    code, out, _ = command("selftest")
    assert code == 0
    assert "Every counter that the witnesses rely on is right." in out


def test_selftest_names_a_counter_that_is_wrong(command, monkeypatch):
    def broken(_):
        raise RuntimeError("no such operator")

    counters = (Counter("low", lambda s: s.macs / 2, relied_on=True), Counter("bad", broken, relied_on=True))
    complaints = list(untrusted(list(run(counters)), counters))
    assert "low finds 50.0% of convolution" in complaints
    assert "bad failed on convolution: no such operator" in complaints
    monkeypatch.setattr(selftest, "COUNTERS", counters[:1])
    monkeypatch.setattr(selftest.run, "__defaults__", (counters[:1],))
    monkeypatch.setattr(selftest.untrusted, "__defaults__", (counters[:1],))
    code, _, err = command("selftest")
    assert code == 1
    assert "low finds 50.0% of F.scaled_dot_product_attention" in err
