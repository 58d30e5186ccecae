"""Maps of a layer that are watched, replaced, wrapped or patched, as PyTorch's libraries do."""

# B batch, N tokens, C channels

import functools
import warnings

import pytest
import torch
from kept import Kept
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as all_modules
from torch.utils.module_tracker import ModuleTracker

from sola_vision import ops
from sola_vision.layers.channel_mix import ChannelMix
from sola_vision.layers.maps import is_its_matrix
from sola_vision.layers.mixers.wkv import WKV
from sola_vision.ops.channel_mix import composed

GRID = (3, 5)

pytestmark = pytest.mark.usefixtures("one_thread")


class Wkv(WKV):
    """Its result alone."""

    def __init__(self, *, shift=True):
        super().__init__(8, 2, shift=shift)

    def forward(self, x, grid):
        return super().forward(x, grid)[0]


def mix(*, shift=True):
    layer = ChannelMix(8, 1, shift=shift)
    layer.init_weights(0.5)
    return layer


every_layer = pytest.mark.parametrize("make", [Wkv, mix])


def made(make, **options):
    torch.manual_seed(0)
    return make(**options).double()


def tokens(dtype=torch.float64):
    return torch.randn(2, 15, 8, generator=torch.Generator().manual_seed(0), dtype=dtype)


def maps(layer):
    return {name: part for name, part in layer.named_children() if isinstance(part, nn.Linear)}


def gradients(layer):
    layer.zero_grad()
    layer(tokens().requires_grad_(), GRID).square().sum().backward()
    return [parameter.grad.clone() for parameter in layer.parameters()]


def without_gradients(layer):
    with torch.no_grad():
        return layer(tokens(), GRID)


def fused(layer, monkeypatch, calls=1):
    """Whether so many forward passes run the one operator of a channel mix."""
    seen, operator = [], ops.channel_mix
    with monkeypatch.context() as patched:
        patched.setattr(ops, "channel_mix", lambda *args: seen.append(None) or operator(*args))
        for _ in range(calls):
            layer(tokens(next(layer.parameters()).dtype), GRID)
    return len(seen) == calls


@every_layer
def test_hooks_on_the_backward_of_maps_change_no_gradient(make):
    layer, seen = made(make), []
    plain = gradients(layer)
    for name, part in maps(layer).items():
        part.register_full_backward_hook(lambda *_, name=name: seen.append(name))
    torch.testing.assert_close(gradients(layer), plain)
    assert sorted(seen) == sorted(maps(layer))


@every_layer
@pytest.mark.parametrize("wanted", [True, False])
def test_what_a_hook_keeps_of_a_map_stays_what_it_gave(make, wanted):
    layer, kept, then = made(make), {}, {}
    for name, part in maps(layer).items():
        part.register_forward_hook(lambda _, args, out, name=name: kept.update({name: out}))
        part.register_forward_hook(lambda _, args, out, name=name: then.update({name: out.clone()}))
    with torch.set_grad_enabled(wanted):
        layer(tokens(), GRID)
    assert kept.keys() == maps(layer).keys()
    assert all(torch.equal(kept[name], then[name]) for name in kept)


@every_layer
@pytest.mark.parametrize("behind", [nn.ReLU(), nn.Sigmoid(), nn.Tanh()])
def test_a_map_may_keep_what_it_returns_for_its_backward(make, behind):
    layer = made(make)
    for name in ("key", "receptance"):
        setattr(layer, name, nn.Sequential(getattr(layer, name), behind))
    parameters = dict(layer.named_parameters())
    call = functools.partial(torch.func.functional_call, layer, args=(tokens(), GRID))
    torch.autograd.gradcheck(lambda *values: call(dict(zip(parameters, values, strict=True))), (*parameters.values(),))


@every_layer
@pytest.mark.parametrize("name", ["key", "receptance"])
def test_a_map_may_return_what_it_was_given(make, name):
    layer, x = made(make, shift=False), tokens()
    setattr(layer, name, nn.Identity())
    expected = layer(x, GRID)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, GRID), expected)
    assert torch.equal(x, tokens())


@every_layer
def test_maps_alone_may_differ_within_an_ensemble_without_gradients(make):
    layer, x = made(make), tokens()
    keys = torch.stack([layer.key.weight, 2 * layer.key.weight])
    call = functools.partial(torch.func.functional_call, layer, args=(x, GRID))
    with torch.no_grad():
        together = torch.vmap(lambda key: call({"key.weight": key}))(keys)
        torch.testing.assert_close(together, torch.stack([call({"key.weight": key}) for key in keys]))


def test_the_composed_channel_mix_is_the_same_in_an_ensemble_and_in_a_trace():
    layer, x = made(mix), tokens()
    weights = [part.weight.detach() for part in maps(layer).values()]
    keys = torch.stack([weights[0], 2 * weights[0]])
    with torch.no_grad():
        together = torch.vmap(lambda key: composed(x, x, key, *weights[1:]))(keys)
    torch.testing.assert_close(together[1], composed(x, x, keys[1], *weights[1:]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # it runs the function with and without gradients, and compares graphs
        torch.jit.trace(composed, (x.requires_grad_(), x, *weights))


@every_layer
@pytest.mark.parametrize("compiled", [False, True])
def test_matrices_of_another_kind_multiply_in_their_own_way(make, compiled):
    layer, other = made(make), made(make)
    for part in maps(other).values():
        part.weight = nn.Parameter(Kept(part.weight.detach()), requires_grad=False)
    expected = without_gradients(layer)
    torch.compiler.reset()
    call = torch.compile(lambda layer, x: layer(x, GRID), backend="aot_eager") if compiled else ChannelMix.__call__
    with torch.no_grad():
        # the first sets what compiled code believes of maps
        for each in (layer, other, layer):
            torch.testing.assert_close(call(each, tokens()) if compiled else each(tokens(), GRID), expected)


GLOBAL_HOOKS = (
    all_modules.register_module_forward_hook,
    all_modules.register_module_forward_pre_hook,
    all_modules.register_module_full_backward_hook,
    all_modules.register_module_full_backward_pre_hook,
)


@every_layer
@pytest.mark.parametrize("register", GLOBAL_HOOKS)
def test_hooks_of_all_modules_see_the_maps(make, register, monkeypatch):
    layer, seen = made(make), []
    plain = gradients(layer)
    handle = register(lambda module, *_: seen.append(module))
    try:
        torch.testing.assert_close(gradients(layer), plain)
    finally:
        handle.remove()
    assert set(maps(layer).values()) <= set(seen)
    assert make is Wkv or fused(layer, monkeypatch)


def test_a_hook_of_all_modules_may_keep_what_maps_return():
    layer, kept = made(Wkv), []

    def keep(part, _, out):
        if isinstance(part, nn.Linear):
            kept.append((out, out.clone()))

    handle = all_modules.register_module_forward_hook(keep)
    try:
        without_gradients(layer)
    finally:
        handle.remove()
    assert len(kept) == len(maps(layer))
    assert all(torch.equal(*pair) for pair in kept)


def test_names_of_modules_change_no_operator(monkeypatch):
    """Counters ask for them by hooks of all modules, and are to count what runs without them."""
    layer = made(mix)
    with ModuleTracker():
        assert fused(layer, monkeypatch)


def test_compiled_code_sees_a_forward_put_on_a_map_later():
    layers = [made(mix) for _ in range(3)]
    plain = layers[1].key.forward
    layers[1].key.forward = lambda x: 2 * plain(x)
    torch.compiler.reset()
    compiled = torch.compile(lambda layer, x: layer(x, GRID), backend="eager", fullgraph=True)
    with torch.no_grad():
        for layer in layers:
            torch.testing.assert_close(compiled(layer, tokens()), layer(tokens(), GRID))
        torch.testing.assert_close(compiled(layers[1], tokens()), 4 * compiled(layers[0], tokens()))


def test_compiled_code_runs_the_operator_of_plain_maps(monkeypatch):
    graphs = []
    torch.compiler.reset()
    compiled = torch.compile(
        made(mix), backend=lambda graph, _: graphs.append(graph.code) or graph.forward, fullgraph=True
    )
    compiled(tokens(), GRID)
    assert "sola.channel_mix" in graphs[0]


@every_layer
def test_a_forward_of_all_linear_maps_is_called(make, monkeypatch):
    layer, seen = made(make), []
    expected = without_gradients(layer)
    with monkeypatch.context() as patched:
        patched.setattr(nn.Linear, "forward", lambda part, x: seen.append(part) or F.linear(x, part.weight, part.bias))
        torch.testing.assert_close(without_gradients(layer), expected)
    assert set(seen) == set(maps(layer).values())
    assert all(map(is_its_matrix, maps(layer).values()))
