"""The pieces around the mixers, against definitions written out."""

# B batch, N tokens, C channels

import pytest
import torch
from tolerances import check_close
from torch.nn import functional as F

from sola_vision import ops
from sola_vision.layers.block import Block
from sola_vision.layers.bridge import HiddenStateBridge
from sola_vision.layers.channel_mix import ChannelMix
from sola_vision.layers.drop_path import DropPath
from sola_vision.layers.head import Head
from sola_vision.layers.norm import LayerNorm
from sola_vision.layers.patches import PatchEmbedding, PatchMerging
from sola_vision.layers.shift import ShiftMix
from sola_vision.spec import BackboneSpec

GRID = (3, 5)


def tokens(channels, *, batch=2, grid=GRID, dtype=torch.float64):
    return torch.randn(batch, grid[0] * grid[1], channels, generator=torch.Generator().manual_seed(0), dtype=dtype)


def q_shift(x, grid):
    """A mix of which the token has no share."""
    mix = ShiftMix(x.size(-1), 1, shift=True).double()
    torch.nn.init.zeros_(mix.ratios)
    return mix(x, grid)[0]


def same(got, exact):
    check_close("layer", [got], [exact], [exact], torch.float64)


@pytest.mark.parametrize("channels", [8, 10, 3])
def test_q_shift_moves_each_quarter_of_the_channels_by_one_token(channels):
    x = tokens(channels)
    image = x.view(2, *GRID, channels)
    expected = torch.zeros_like(image)
    group = channels // 4
    steps = [(0, 1), (0, -1), (1, 0), (-1, 0)]
    for row in range(GRID[0]):
        for column in range(GRID[1]):
            for number, (down, right) in enumerate(steps):
                source = (row - down, column - right)
                if 0 <= source[0] < GRID[0] and 0 <= source[1] < GRID[1]:
                    part = slice(number * group, (number + 1) * group)
                    expected[:, row, column, part] = image[:, source[0], source[1], part]
            expected[:, row, column, 4 * group :] = image[:, row, column, 4 * group :]
    assert torch.equal(q_shift(x, GRID), expected.flatten(1, 2))


def test_shift_mix_blends_a_token_with_its_neighbours():
    x = tokens(8)
    mix = ShiftMix(8, 2, shift=True).double()
    mix.init_weights((1.0, 0.0))
    first, second = mix(x, GRID)
    share = torch.arange(8, dtype=torch.float64) / 8
    same(first, share * x + (1 - share) * q_shift(x, GRID))
    same(second, x)


def test_without_shift_every_branch_is_the_token():
    x = tokens(8)
    mix = ShiftMix(8, 3, shift=False)
    mix.init_weights((1.0, 0.0, 0.5))
    assert all(branch is x for branch in mix(x, GRID))
    assert not list(mix.parameters())


@pytest.mark.parametrize(
    ("change", "shape", "ours"),
    [
        (lambda norm: norm, (2, 5, 24), 1),
        (lambda norm: norm.bfloat16(), (2, 5, 24), 1),
        # more than tokens, no parameters, one of them gone
        (lambda norm: norm, (2, 3, 5, 24), 0),
        (lambda norm: LayerNorm(24, elementwise_affine=False), (2, 5, 24), 0),
        (lambda norm: LayerNorm(24, bias=False), (2, 5, 24), 0),
        (lambda norm: LayerNorm((5, 24)), (2, 5, 24), 0),
    ],
)
def test_layer_norm_is_pytorchs(change, shape, ours, monkeypatch):
    calls, operator = [], ops.layer_norm
    monkeypatch.setattr(ops, "layer_norm", lambda *args, **options: calls.append(1) or operator(*args, **options))
    norm = LayerNorm(24)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    norm = change(norm)
    theirs = torch.nn.LayerNorm(norm.normalized_shape, norm.eps, norm.elementwise_affine, norm.bias is not None)
    theirs.load_state_dict(norm.state_dict())
    x = torch.randn(shape).to(next(iter(norm.parameters()), torch.empty(0)).dtype)
    exact = theirs.double()(x.double())
    check_close("norm", [norm(x)], [norm(x)], [exact], x.dtype)
    assert len(calls) == 2 * ours
    with torch.inference_mode():
        check_close("norm", [torch.compile(norm, backend="eager")(x)], [norm(x)], [exact], x.dtype)
    assert len(calls) == 3 * ours


def test_channel_mix_is_its_formula():
    x = tokens(8)
    layer = ChannelMix(8, 4, shift=True).double()
    layer.init_weights(0.5)
    for_key, for_receptance = layer.mix(x, GRID)
    hidden = F.relu(for_key @ layer.key.weight.T) ** 2
    expected = torch.sigmoid(for_receptance @ layer.receptance.weight.T) * (hidden @ layer.value.weight.T)
    same(layer(x, GRID), expected)
    # the path without gradients works in place
    with torch.no_grad():
        same(layer(x, GRID), expected)
    assert sum(p.numel() for p in (layer.key.weight, layer.value.weight, layer.receptance.weight)) == 9 * 8 * 8


class Adapted(torch.nn.Linear):
    """A map with something beside its matrix, as adapters and quantised maps are."""

    def forward(self, x):
        return super().forward(x) + 1


@pytest.mark.parametrize("name", ["key", "value", "receptance"])
def test_channel_mix_calls_maps_that_are_more_than_a_matrix(name):
    """One operator does the work of three plain maps; what stands in their place, or listens to them, is called."""
    x = tokens(8)
    layer = ChannelMix(8, 4, shift=True).double()
    layer.init_weights(0.5)
    plain, part = layer(x, GRID), getattr(layer, name)
    for_key, for_receptance = layer.mix(x, GRID)

    calls = []
    handle = part.register_forward_hook(lambda *_: calls.append(name))
    same(layer(x, GRID), plain)
    assert calls == [name]
    handle.remove()
    layer(x, GRID)
    assert calls == [name]

    adapted = Adapted(part.in_features, part.out_features, bias=False).double()
    adapted.weight = part.weight
    setattr(layer, name, adapted)
    hidden = F.relu(layer.key(for_key)) ** 2
    same(layer(x, GRID), torch.sigmoid(layer.receptance(for_receptance)) * layer.value(hidden))


@pytest.mark.parametrize("name", ["key", "value", "receptance"])
def test_channel_mix_calls_a_forward_put_on_a_map(name):
    """As libraries do that move weights around or watch what passes: the module stays what it was."""
    layer = ChannelMix(8, 4, shift=True).double()
    part = getattr(layer, name)
    plain, calls = part.forward, []

    def forward(x):
        calls.append(name)
        return plain(x)

    part.forward = forward
    layer(tokens(8), GRID)
    assert calls == [name]


@pytest.mark.parametrize("size", [(8, 12), (7, 9), (1, 2)])
def test_patch_embedding_pads_to_whole_patches(size):
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    layer = PatchEmbedding(3, 8, 4).double()
    x, grid = layer(image)
    rows, columns = (size[0] + 3) // 4, (size[1] + 3) // 4
    assert grid == (rows, columns)
    padded = image.new_zeros(2, 3, 4 * rows, 4 * columns)
    padded[:, :, : size[0], : size[1]] = image
    patches = F.unfold(padded, 4, stride=4).transpose(1, 2)
    expected = layer.norm(patches @ layer.projection.weight.flatten(1).T + layer.projection.bias)
    same(x, expected)


def test_the_embedded_tokens_are_not_copied_for_the_norm():
    layer, seen = PatchEmbedding(3, 8, 4), []
    layer.norm.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].is_contiguous()))
    layer(torch.randn(2, 3, 16, 24))
    layer(torch.randn(2, 3, 16, 24).to(memory_format=torch.channels_last))
    assert seen == [True, True]


@pytest.mark.parametrize("grid", [(4, 6), (3, 5), (1, 1), (2, 3)])
def test_patch_merging_concatenates_two_by_two(grid):
    x = tokens(8, grid=grid)
    layer = PatchMerging(8, 16).double()
    merged, new_grid = layer(x, grid)
    assert new_grid == ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
    padded = x.new_zeros(2, 2 * new_grid[0], 2 * new_grid[1], 8)
    padded[:, : grid[0], : grid[1]] = x.view(2, *grid, 8)
    corners = [padded[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    same(merged, layer.reduction(layer.norm(torch.cat(corners, -1).flatten(1, 2))))


@pytest.mark.parametrize("halvings", [0, 1, 2, 3])
@pytest.mark.parametrize("grid", [(8, 16), (7, 9), (1, 5)])
def test_a_bridge_averages_what_merges_into_a_token(grid, halvings):
    state = tokens(8, grid=grid)
    bridge = HiddenStateBridge(8, 16, halvings).double()
    sampled = bridge.sample(state, grid)
    target = grid
    for _ in range(halvings):
        target = ((target[0] + 1) // 2, (target[1] + 1) // 2)
    side = 2**halvings
    image = state.view(2, *grid, 8)
    expected = [
        image[:, row * side : (row + 1) * side, column * side : (column + 1) * side].mean((1, 2))
        for row in range(target[0])
        for column in range(target[1])
    ]
    same(sampled, torch.stack(expected, 1))
    x = tokens(16, grid=target)
    same(bridge(x, sampled), x + torch.sigmoid(x) * (sampled @ bridge.linear.weight.T))


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    torch.manual_seed(0)
    layer = DropPath(0.25)
    x = torch.ones(4000, 2, 3)
    y = layer(x)
    per_image = y.flatten(1)
    assert torch.equal(per_image.min(1).values, per_image.max(1).values)
    assert set(per_image.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    # 4000 draws: five standard errors of the mean
    assert abs(y.mean().item() - 1) < 5 * (0.25 / 0.75 / 4000) ** 0.5
    layer.eval()
    assert layer(x) is x
    assert DropPath(0.0)(x) is x


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_drop_path_refuses_a_rate_outside_its_range(rate):
    with pytest.raises(ValueError, match=r"drop_path: expected a rate in \[0, 1\)"):
        DropPath(rate)


def test_head_averages_normalised_tokens():
    x = tokens(8)
    head = Head(8, 5).double()
    mean = F.layer_norm(x, (8,)).mean(1)
    same(head(x), mean @ head.classifier.weight.T + head.classifier.bias)
    same(Head(8, 0).double()(x), mean)


def test_a_block_adds_mixer_and_channel_mix_to_its_input():
    spec = BackboneSpec("one", (8, 8, 8, 8), "L|L|L|S", head_dim=4)
    layer = spec.layer("1.1")
    block = Block(layer, spec, drop_path=0.0, keep_state=True).double()
    x = tokens(8)
    out, state = block(x, GRID)
    mixed, expected_state = block.mixer(block.norm1(x), GRID)
    middle = x + mixed
    same(out, middle + block.channel_mix(block.norm2(middle), GRID))
    same(state, expected_state)
    assert Block(layer, spec, drop_path=0.0, keep_state=False).double()(x, GRID)[1] is None
    dropped = Block(layer, spec, drop_path=0.999999, keep_state=False).double()
    assert torch.equal(dropped(x, GRID)[0], x)
