"""The study: figures of matrices that are known, matrices against operators, exact kernels, the command."""

import io
import json
import sys
from dataclasses import replace
from math import inf, log, pi, sinh, sqrt

import altair
import pytest
import torch
from PIL import Image
from rich.console import Console

import sola_profile
from sola_profile.case import Resolution
from sola_profile.report.study_charts import study_charts
from sola_profile.study import instruments, materialized
from sola_profile.study.across import (
    ProductProbes,
    high_frequency,
    linear_cka,
    merged,
    rank_one_residual,
    token_similarity,
)
from sola_profile.study.horizons import FIXED, OWN
from sola_profile.study.images import Samples
from sola_profile.study.matrix_metrics import (
    Geometry,
    RowSums,
    change,
    confusion,
    factor_values,
    rank_and_condition,
    row_values,
    spectrum,
)
from sola_profile.study.mixing import LinearMixing, Mixing, SoftmaxMixing, WKVMixing, even_mixing, mixing_of
from sola_profile.study.stack_kernel import repeated, slope, stack_reaches
from sola_profile.study.study_result import Slope
from sola_profile.study.taking import taking
from sola_vision import create_model, presets, save_weights
from sola_vision.layers import mixers
from sola_vision.layers.mixers.decay import DecayAttention
from sola_vision.spec import BackboneSpec

MIXERS = {
    "L": "wkv",
    "T": ("wkv", {"decay_per": "token", "shift": False}),
    "S": "softmax",
    "R": "linear",
    "N": ("linear", {"rope": False, "lepe": False}),
    "D": "decay",
}
TINY = BackboneSpec("tiny", (16, 16, 24, 32), "LT|SR|NDS|S", mixers=MIXERS, head_dim=8, num_classes=4)
SIZE = Resolution(40, 56)
GRID = (6, 8)
N = GRID[0] * GRID[1]
CLOSE = {"rel": 1e-9, "abs": 1e-9}


class Given(Mixing):
    """A matrix that is handed over."""

    unit = "matrix"

    def __init__(self, matrix):
        self.matrix = matrix

    count = 1
    tokens = property(lambda self: self.matrix.size(0))

    def rows(self, number, queries):
        return self.matrix[queries]

    def values(self, number):
        return torch.ones(self.tokens, 1, dtype=torch.float64)

    def apply(self, x):
        return self.matrix @ x


def figures(matrix, pixels=4):
    """Row figures, over two unequal blocks, and ranks."""
    sums = RowSums()
    for block in torch.arange(N).split(29):
        sums.add(matrix[block], Geometry.of(block, GRID, pixels))
    return sums.figures(), spectrum(row_values(matrix), N, "all rows")


def test_identity():
    eye = torch.eye(N, dtype=torch.float64)
    rows, ranks = figures(eye)
    assert (rows.entropy, rows.participation, rows.top, rows.local) == (0, 1, 1, 1)
    assert (rows.distance_px, rows.negative) == (0, 0)
    assert (ranks.numerical, ranks.effective, ranks.stable) == pytest.approx((N, N, N))
    assert confusion(eye, torch.randn(N, 4, dtype=torch.float64)) == 0
    probes = ProductProbes(GRID)
    probes.through(Given(eye), GRID)
    assert (probes.deviation(), probes.apart()) == pytest.approx((1, 1))
    # merging tokens is no mixing
    probes.through(Given(torch.eye(12, dtype=torch.float64)), (3, 4))
    assert (probes.deviation(), probes.apart()) == pytest.approx((1, 1))


def test_uniform():
    uniform = torch.full((N, N), 1 / N, dtype=torch.float64)
    rows, ranks = figures(uniform)
    # corners have 4 neighbours with themselves, edges 6, the others 9
    chance = (4 * 4 + 2 * (4 + 6) * 6 + 4 * 6 * 9) / N / N
    assert rows.entropy == pytest.approx(1)
    assert (rows.participation, rows.top) == pytest.approx((N, 9 / N))
    assert (rows.local, rows.local_chance) == pytest.approx((chance, chance))
    assert rows.distance_px == pytest.approx(rows.distance_chance_px)
    assert (ranks.numerical, ranks.effective, ranks.stable) == pytest.approx((1, 1, 1), rel=1e-5)
    # every row is near, whatever the query
    assert confusion(uniform, torch.randn(N, 4, dtype=torch.float64)) == 1
    probes = ProductProbes(GRID)
    probes.through(Given(uniform), GRID)
    assert (probes.deviation(), probes.apart()) == pytest.approx((0, 0), abs=1e-12)


def test_a_band_that_goes_around():
    eye = torch.eye(N, dtype=torch.float64)
    band = (eye + eye.roll(1, 1)) / 2
    rows, ranks = figures(band)
    assert rows.entropy == pytest.approx(log(2) / log(N))
    assert (rows.participation, rows.top) == pytest.approx((2, 1))
    # the last of a row of tokens looks at the first of the next, which is no neighbour
    assert rows.local == pytest.approx(7 / 8 + 1 / 8 / 2)
    wrapped = 5 * sqrt(7**2 + 1) + sqrt(7**2 + 5**2)
    assert rows.distance_px == pytest.approx(4 * (7 * 6 + wrapped) / 2 / N)
    # the singular values of a circulant are |cos(πk/N)|, half of whose squares' sum is N/2
    values = torch.cos(pi * torch.arange(N, dtype=torch.float64) / N).abs()
    shares = values / values.sum()
    assert ranks.stable == pytest.approx(N / 2)
    assert ranks.effective == pytest.approx(float(torch.special.entr(shares).sum().exp()), rel=1e-6)
    # cos(π/2) is 0
    assert ranks.numerical == N - 1
    probes = ProductProbes(GRID)
    probes.through(Given(band), GRID)
    assert probes.deviation() == pytest.approx(sqrt((N / 2 - 1) / (N - 1)), rel=0.05)


def test_rank_one_and_signed_rows():
    share = torch.arange(1, N + 1, dtype=torch.float64)
    matrix = (share / share.sum()).expand(N, -1)
    rows, ranks = figures(matrix)
    assert rows.participation == pytest.approx(float(share.sum() ** 2 / share.square().sum()))
    assert (ranks.numerical, ranks.effective, ranks.stable) == pytest.approx((1, 1, 1), rel=1e-5)
    probes = ProductProbes(GRID)
    probes.through(Given(matrix.contiguous()), GRID)
    assert probes.apart() == pytest.approx(0, abs=1e-12)
    assert probes.deviation() > 0.01
    assert probes.rank() == pytest.approx(1, rel=1e-5)
    left, right = torch.randn(2, N, 3, dtype=torch.float64)
    assert factor_values(left, right).tolist() == pytest.approx(
        torch.linalg.svdvals(left @ right.T)[:3].tolist(), rel=1e-9
    )
    rows, _ = figures(torch.eye(N, dtype=torch.float64) - 0.25 * torch.eye(N, dtype=torch.float64).roll(1, 1))
    assert rows.negative == pytest.approx(0.2)
    assert rows.participation == pytest.approx(1 / (0.8**2 + 0.2**2))
    assert change(matrix, matrix) == 0
    assert change(torch.eye(4), torch.eye(4).roll(1, 1)) == 1
    assert rank_and_condition(torch.diag(torch.tensor([4.0, 2.0, 1.0]))) == (3, pytest.approx(4))
    assert rank_and_condition(torch.diag(torch.tensor([4.0, 2.0, 0.0]))) == (2, inf)


def test_features():
    same = torch.tensor([1.0, -2.0, 3.0]).double().expand(10, -1)
    assert token_similarity(same) == pytest.approx(1)
    assert (rank_one_residual(same), high_frequency(same)) == pytest.approx((0, 0), abs=1e-12)
    assert token_similarity(torch.eye(6)) == pytest.approx(0, abs=1e-7)
    # mean (1, 0), the rest ± (0, 3)
    x = torch.tensor([[1.0, 3.0], [1.0, -3.0]]).double()
    assert high_frequency(x) == pytest.approx(3)
    assert rank_one_residual(x) == pytest.approx(sqrt(6 * 3) / sqrt(6 * 4))
    features = torch.randn(40, 5, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    alike = linear_cka([features, 3 * features @ rotation + 7])
    assert alike[0][1] == pytest.approx(1)
    waves = torch.stack([torch.cos(2 * pi * k * torch.arange(32).double() / 32) for k in (1, 2)], 1)
    assert linear_cka([waves[:, :1], waves[:, 1:]])[0][1] == pytest.approx(0, abs=1e-12)
    # an odd edge is the mean of what there is
    small, grid = merged(torch.arange(9.0).double()[:, None], (3, 3))
    assert (grid, small[:, 0].tolist()) == ((2, 2), [2, 3.5, 6.5, 8])


@pytest.fixture(scope="module")
def model():
    """All mixers, with weights large enough that contents matter."""
    torch.manual_seed(0)
    built = create_model(TINY).double().eval()
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if parameter.dim() == 2 and "mixer" in name:
                parameter.mul_(20)
    return built


def test_every_matrix_times_values_is_the_operator(model):
    with torch.no_grad(), taking(model) as taken:
        model(Samples(1).load(0, 3, SIZE).double())
    seen = set()
    for each in taken:
        mixing = mixing_of(each.block.mixer, each.mixer_in[0], each.grid)
        everywhere = torch.arange(mixing.tokens)
        matrices = [mixing.rows(number, everywhere) for number in range(mixing.count)]
        for number, matrix in enumerate(matrices):
            expected = mixing.operator_share(each.operator[0], number)
            torch.testing.assert_close(matrix @ mixing.values(number), expected, rtol=1e-11, atol=1e-12)
            if (factors := mixing.factors(number)) is not None:
                torch.testing.assert_close(factors[0] @ factors[1].T, matrix, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(mixing.mean_rows(everywhere), torch.stack(matrices).mean(0))
        # the operator carries vectors as the mean matrix does, more of them than it takes at once
        vectors = torch.randn(mixing.tokens, 300, dtype=torch.float64)
        torch.testing.assert_close(
            mixing.apply(vectors), torch.stack(matrices).mean(0) @ vectors, rtol=1e-8, atol=1e-10
        )
        seen.add((each.layer.mixer.name, str(each.layer.mixer)))
    assert len(seen) == len(MIXERS)


def test_the_state_is_that_of_the_keys_and_values(model):
    with torch.no_grad(), taking(model) as taken:
        model(Samples(1).load(0, 3, SIZE).double())
    (plain,) = (each for each in taken if each.layer.letter == "N")
    mixing = mixing_of(plain.block.mixer, plain.mixer_in[0], plain.grid)
    q = torch.nn.functional.elu(mixing.q[:, 0]) + 1
    k = torch.nn.functional.elu(mixing.k[:, 0]) + 1
    read = q @ mixing.state(0) / (q @ k.sum(0) + 1e-6)[:, None]
    torch.testing.assert_close(read, mixing.operator_share(plain.operator[0], 0), rtol=1e-9, atol=1e-12)


def decay_layer(rate):
    """A layer of the tiny model whose heads all fade at one rate."""
    spec = BackboneSpec("d", (16, 16, 16, 16), "D|D|D|D", mixers={"D": "decay"}, head_dim=8)
    mixer = DecayAttention(16, 2).double()
    torch.nn.init.constant_(mixer.log_rate, log(rate))
    return spec.layer("3.1"), mixer


def test_a_stack_of_exponential_kernels_has_the_known_width_and_grows_as_the_root_of_depth():
    rate = 0.2
    layer = decay_layer(rate)
    found = repeated([layer], (64, 64))
    exact = 1 / (2 * sinh(rate / 2) ** 2)
    for depth, measured, predicted in zip(found.depths, found.measured_sigma, found.predicted_sigma, strict=True):
        assert measured == pytest.approx(sqrt(depth * exact), rel=0.01)
        assert predicted == pytest.approx(sqrt(depth * exact), rel=0.01)
        assert predicted == pytest.approx(sqrt(depth * 2 / rate**2), rel=0.01)
    assert found.sigma_slope.value == pytest.approx(0.5, abs=0.001)
    assert found.sigma_slope.holds_half
    # one kernel is no Gaussian (two exponentials have heavier tails), many are
    differences = [profile.difference for profile in found.profiles]
    assert differences == sorted(differences, reverse=True)
    assert differences[-1] < 0.03
    # 99 % of a Laplace distribution lie within ln(100)/√2 = 3.26 of its deviations, of a Gaussian within 2.58
    ratios = [reach / sigma for reach, sigma in zip(found.measured_99, found.measured_sigma, strict=True)]
    assert ratios[0] == pytest.approx(log(100) / sqrt(2), rel=0.03)
    assert ratios[-1] == pytest.approx(2.576, rel=0.03)
    assert found.reach_slope.value < 0.5
    # where the image is too small there is no exponent
    assert repeated([layer], (4, 4)).sigma_slope is None
    assert slope([1, 2, 4, 8], [3, 6, 12, 24]) == Slope(pytest.approx(1), pytest.approx(0.999), pytest.approx(1.001))


def test_a_softmax_layer_reaches_everything():
    spec = BackboneSpec("s", (16, 16, 16, 16), "D|D|DSD|D", mixers={"D": "decay", "S": "softmax"}, head_dim=8)
    model = create_model(spec)
    for block in (block for stage in model.stages for block in stage.blocks):
        if isinstance(block.mixer, DecayAttention):
            torch.nn.init.constant_(block.mixer.log_rate, log(0.5))
    layers = [
        (layer, model.get_submodule(f"stages.{layer.id.stage - 1}.blocks.{layer.id.layer - 1}.mixer"))
        for layer in spec.layers()
    ]
    before, *_ = found = stack_reaches(layers, spec.token_grids(512, 512))
    reaches = [reach.measured_99 for reach in found]
    assert all(reach < 0.05 for reach in reaches[:3])
    assert all(reach > 0.95 for reach in reaches[3:])
    assert found[3].predicted_sigma == inf
    assert before.predicted_sigma == pytest.approx(before.measured_sigma, rel=0.01)
    # equal contents leave a softmax row nothing but the mean
    uniform = even_mixing(layers[3][1], (4, 4)).rows(0, torch.arange(16))
    torch.testing.assert_close(uniform, torch.full((16, 16), 1 / 16, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.fixture(scope="module")
def studied():
    """A whole study of the tiny backbone."""
    patch = pytest.MonkeyPatch()
    patch.setattr(instruments, "HORIZON_SIZES", (Resolution(32, 32),))
    torch.manual_seed(0)
    found = sola_profile.study_model(TINY, [SIZE], count=2, matrices=3, rows=20)
    patch.undo()
    return found


def test_a_study_has_every_figure_of_every_layer(studied):
    (size,) = studied.sizes
    assert studied.agrees
    assert [str(layer.place) for layer in size.layers] == [str(layer.id) for layer in TINY.layers()]
    assert all(layer.error < 1e-12 for layer in size.layers)
    # a mean of rows is no more pointed than they are
    assert all(layer.mean.entropy >= layer.rows_mean.entropy - 0.05 for layer in size.layers)
    assert {layer.rows for layer in size.layers} == {20, 12, 4}
    assert [len(layer.matrices) for layer in size.layers] == [3, 3, 2, 2, 3, 3, 3, 3]
    by_letter = {layer.letter: layer for layer in size.layers}
    assert by_letter["L"].known_mean("confusion") is None
    assert by_letter["R"].rows_mean.negative > 0
    assert by_letter["N"].known_mean("state_rank") == 8
    assert [depth.is_softmax for depth in size.depths] == [False, False, True, False, False, False, True, True]
    apart = [depth.apart for depth in size.depths]
    assert apart[-1] < apart[0] < 1
    for depth in size.depths:
        areas = list(depth.areas.values())
        assert areas == sorted(areas)
        assert 0 < areas[0] <= areas[-1] <= 1
    assert [row[index] for index, row in enumerate(size.cka)] == pytest.approx([1] * 8)
    assert {each.variant for each in studied.horizons} == {OWN, FIXED}
    assert {each.resolution for each in studied.horizons} == {SIZE, Resolution(32, 32)}
    assert "Where rows look, at 40x56 on objects 1" in studied._repr_html_()


def test_charts_keep_to_the_schema_and_json_has_everything(studied):
    charts = study_charts(studied)
    assert {"depth.svg", "maps-40x56.svg", "cka-40x56.svg", "reach.svg", "exponent.svg", "kernel.svg"} == set(charts)
    for chart in charts.values():
        # panels are alike, and validating takes its time
        panels = {name: chart[name][:1] for name in ("concat", "hconcat") if name in chart}
        altair.Chart.from_dict({**chart, **panels}, validate=True)
    document = json.loads(studied.json_text())
    assert [layer["place"] for layer in document["sizes"][0]["layers"]] == [str(layer.id) for layer in TINY.layers()]
    assert document["sizes"][0]["depths"][0]["areas"]["0.99"] == studied.sizes[0].depths[0].areas[0.99]
    assert document["horizons"][0]["own"][2]["predicted_sigma"] is None


def test_the_terminal_cuts_nothing_off(studied):
    file = io.StringIO()
    studied.print_to(Console(file=file, width=100))
    text = file.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_features_that_are_not_finite_end_a_size(tiny):
    model = create_model(tiny)
    torch.nn.init.constant_(model.stages[1].blocks[0].mixer.key.weight, float("nan"))
    found = sola_profile.study_model(model, 32, count=1)
    assert [str(layer.place) for layer in found.sizes[0].layers] == ["1.1"]
    assert any("layer 2.1 gives NaN or infinity on objects 1" in remark for remark in found.remarks)
    assert "layer 2.1 gives NaN" in found._repr_html_()
    assert not found.horizons
    assert any(remark.startswith("No horizon") for remark in found.remarks)


def test_what_is_known_of_random_queries_and_keys():
    """196 tokens, 32 channels: entropy 0.907 for softmax and 0.998 for ELU + 1, effective ranks about 108 and 5."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 196, 1, 32, generator=generator, dtype=torch.float64)
    everywhere = torch.arange(196)
    geometry = Geometry.of(everywhere, (14, 14), 1)
    for kind, entropy, rank in ((SoftmaxMixing, 0.907, 108), (LinearMixing, 0.998, 5.0)):
        matrix, sums = kind(q, k, v).rows(0, everywhere), RowSums()
        sums.add(matrix, geometry)
        assert sums.figures().entropy == pytest.approx(entropy, abs=0.003)
        assert spectrum(row_values(matrix), 196, "all rows").effective == pytest.approx(rank, rel=0.05)


@pytest.fixture
def tiny(monkeypatch):
    """The command knows the tiny backbone, and few sizes."""
    spec = replace(TINY, pattern="L|L|S|D")
    monkeypatch.setitem(presets.PRESETS, "tiny", spec)
    monkeypatch.setattr(instruments, "HORIZON_SIZES", ())
    return spec


def test_the_command_reads_weights_and_images_and_writes_a_page(sola_profile, tiny, tmp_path):
    weights, folder, out = tmp_path / "tiny.safetensors", tmp_path / "images", tmp_path / "out"
    save_weights(create_model(tiny), weights)
    folder.mkdir()
    Image.new("RGB", (50, 30), (200, 40, 40)).save(folder / "red.png")
    Image.effect_noise((64, 64), 80).save(folder / "noise.jpg")
    (folder / "notes.txt").write_text("no image")
    code, printed, err = sola_profile(
        *("study", "--model", "tiny", "--res", "32,48", "--weights", str(weights), "--images", str(folder)),
        *("--out", str(out), "--json", str(tmp_path / "x.json")),
    )
    assert code == 0
    assert "48: matrices of layer 3.1 (S)" in err
    assert "weights of tiny.safetensors, images: noise.jpg, red.png" in " ".join(printed.split())
    page = (out / "README.md").read_text()
    for chart in ("depth.svg", "maps-32.svg", "reach.svg", "exponent.svg"):
        assert f"]({chart})" in page
        assert (out / chart).read_text().startswith("<svg")
    assert json.loads((tmp_path / "x.json").read_text())["weights"] == "tiny.safetensors"


def test_a_matrix_that_is_not_the_operator_s_is_an_error(sola_profile, tiny, monkeypatch):
    rows = WKVMixing.rows
    monkeypatch.setattr(WKVMixing, "rows", lambda self, number, queries: rows(self, number, queries).roll(1, 1))
    code, printed, _ = sola_profile("study", "--model", "tiny", "--res", "32", "--count", "1")
    assert code == 1
    assert "1.1 wkv: differs from the operator by" in printed
    assert "Matrices that differ from the operator by more than 1e-09: layers 1.1, 2.1." in printed


def test_an_interruption_keeps_finished_layers(sola_profile, tiny, tmp_path, monkeypatch):
    study_layer, calls = instruments.study_layer, []

    def interrupt(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return study_layer(*arguments)

    monkeypatch.setattr(instruments, "study_layer", interrupt)
    code, printed, _ = sola_profile("study", "--model", "tiny", "--res", "32", "--out", str(tmp_path / "out"))
    assert code == 130
    assert "2.1 wkv" in printed
    assert "Interrupted" in (tmp_path / "out" / "README.md").read_text()
    (size,) = json.loads((tmp_path / "out" / "study.json").read_text())["sizes"]
    assert [layer["place"] for layer in size["layers"]] == ["1.1", "2.1"]


def test_memory_that_runs_out_costs_one_size(tiny, monkeypatch):
    study_layer = materialized.study_layer

    def exhausted(taken, extent, pixels):
        if taken.grid[0] > 8:
            raise torch.OutOfMemoryError
        return study_layer(taken, extent, pixels)

    monkeypatch.setattr(instruments, "study_layer", exhausted)
    found = sola_profile.study_model(tiny, "32,48", count=1)
    assert [len(size.layers) for size in found.sizes] == [4, 0]
    assert any(remark.startswith("48: memory ran out") for remark in found.remarks)


def test_a_mixer_without_a_known_matrix_is_a_line_of_its_own(tiny, monkeypatch):
    class Unknown(DecayAttention):
        pass

    module = type(sys)("unknown_mixer")
    module.Unknown = Unknown
    monkeypatch.setitem(sys.modules, "unknown_mixer", module)
    monkeypatch.setitem(mixers.MIXERS, "unknown", "unknown_mixer:Unknown")
    monkeypatch.setattr(
        materialized, "mixing_of", lambda mixer, *rest: None if isinstance(mixer, Unknown) else mixing_of(mixer, *rest)
    )
    found = sola_profile.study_model(tiny.rewired(mixers={"D": "unknown"}), 32, count=1)
    assert "the matrix of Unknown is not defined here" in found._repr_html_()
    assert found.sizes[0].layers[0].matrices


def test_generated_images_are_one_picture_at_every_size():
    samples = Samples(4)
    assert samples.names == ("objects 1", "texture 2", "blobs 3", "objects 4")
    for number in range(3):
        large, small = (samples.load(number, 3, Resolution(side, side)) for side in (128, 64))
        halved = torch.nn.functional.avg_pool2d(large, 2)
        assert (halved - small).abs().mean() < 0.05 * small.std()
        assert torch.equal(small, samples.load(number, 3, Resolution(64, 64)))
    assert samples.load(1, 1, SIZE).shape == (1, 1, 40, 56)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--model", "sola_x"), "did you mean 'sola_"),
        (("--model", "timm:resnet18"), "expected a preset such as sola_t"),
        (("--res", "224,"), "an empty size"),
        (("--count", "0"), "count: expected at least 1 image, got 0"),
        (("--matrices", "0"), "matrices: expected a whole number of at least 1, got 0"),
        (("--rows", "-1"), "rows: expected a whole number of at least 0, got -1"),
        (("--threads", "0"), "expected at least 1, got 0"),
        (("--images", "nowhere"), "can't read the folder nowhere: No such file"),
        (("--images", "empty"), "no image in empty; expected files with .png"),
        (("--weights", "no.safetensors"), "can't read no.safetensors: No such file"),
        (("--weights", "text.safetensors"), "is no safetensors file"),
    ],
)
def test_bad_use_is_explained(sola_profile, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.safetensors").write_text("not a file of weights")
    code, _, err = sola_profile("study", "--model", "sola_t", *arguments)
    assert code == 2
    assert sentence in " ".join(err.replace("│", " ").split())


def test_an_image_that_can_not_be_read_is_named(sola_profile, tmp_path):
    (tmp_path / "broken.png").write_text("no image")
    code, _, err = sola_profile("study", "--model", "sola_t", "--images", str(tmp_path))
    assert code == 2
    assert "images: can't read broken.png" in " ".join(err.replace("│", " ").split())
    with pytest.raises(ValueError, match=r"images: can't read broken\.png"):
        Samples(1, tmp_path).load(0, 3, SIZE)
    with pytest.raises(ValueError, match="files have 3 channels, the model takes 1"):
        Samples(1, tmp_path).load(0, 1, SIZE)
