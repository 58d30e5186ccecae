"""Figures of matrices and features that are known, matrices against operators, exact kernels."""

from math import inf, log, pi, sinh, sqrt

import pytest
import torch
from study_models import MIXERS, SIZE, TINY

from sola_profile.study.across import (
    ProductProbes,
    high_frequency,
    linear_cka,
    merged,
    rank_one_residual,
    token_similarity,
)
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
from sola_profile.study.mixing import LinearMixing, Mixing, SoftmaxMixing, even_mixing, mixing_of
from sola_profile.study.stack_kernel import repeated, slope, stack_reaches
from sola_profile.study.study_result import Slope
from sola_profile.study.taking import taking
from sola_vision import create_model
from sola_vision.layers.mixers.decay import DecayAttention
from sola_vision.spec import BackboneSpec

GRID = (6, 8)
N = GRID[0] * GRID[1]


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


def test_one_token_is_no_nearer_to_anything():
    probes = ProductProbes((2, 2))
    probes.through(LinearMixing(*(torch.zeros(1, 1, 1, dtype=torch.float64) for _ in range(3))), (1, 1))
    assert (probes.deviation(), probes.apart()) == (None, None)


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
