"""Backbones under torch.compile, torch.export and torch.jit.trace."""

import warnings

import pytest
import torch
from tolerances import check_close
from torch import nn
from torch.export import Dim

from sola_vision import BackboneSpec, create_model
from sola_vision.layers.bridge import HiddenStateBridge
from sola_vision.layers.mixers import MIXERS

SPEC = BackboneSpec("tiny", (16, 16, 32, 32), "L|L|L|LS", head_dim=8, bridges=("1.1->4.2", "4.1->4.2"), num_classes=5)
SIZES = [(33, 90), (64, 64), (101, 67)]


def tiny(mixer="wkv"):
    torch.manual_seed(0)
    return create_model(SPEC, mixers={"L": mixer}).eval()


def images(*size):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(7))


def same(got, expected):
    # six layers whose operations are fused or decomposed in another order
    check_close("scores", [got], [expected], [expected.double()], expected.dtype, conditioning=4.0)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()


@pytest.mark.parametrize("mixer", sorted(MIXERS))
def test_compiles_as_one_graph_forward_and_backward(mixer):
    model = tiny(mixer)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    image = images(40, 56)
    expected = model(image)
    expected.sum().backward()
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    scores = compiled(image)
    scores.sum().backward()
    same(scores, expected)
    for (name, parameter), grad in zip(model.named_parameters(), grads, strict=True):
        check_close(name, [parameter.grad], [grad], [grad.double()], torch.float32, conditioning=4.0)


def test_compiles_with_checkpointing():
    model = tiny()
    model.set_grad_checkpointing()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    image = images(40, 56)
    scores = compiled(image)
    scores.sum().backward()
    same(scores, model(image))


def test_one_compiled_graph_serves_every_resolution():
    model = tiny()
    # the eager backend is enough: whether a graph fits another size is decided in front of it
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
    with torch.no_grad():
        same(compiled(images(45, 80)), model(images(45, 80)))
        with torch.compiler.set_stance("fail_on_recompile"):
            for size in SIZES:
                same(compiled(images(*size)), model(images(*size)))


@pytest.mark.parametrize("mixer", ["wkv", "linear"])
def test_exports_for_every_resolution(mixer):
    model = tiny(mixer)
    side = Dim.DYNAMIC(min=33, max=4096)
    with torch.no_grad():
        program = torch.export.export(model, (images(45, 80),), dynamic_shapes=({0: Dim.DYNAMIC, 2: side, 3: side},))
        exported = program.module()
        for size in SIZES:
            same(exported(images(*size)), model(images(*size)))


@pytest.mark.parametrize(("mixer", "lowered"), [("wkv", False), *((mixer, True) for mixer in sorted(MIXERS))])
def test_exports_for_named_ranges_of_sizes(mixer, lowered):
    model = tiny(mixer)
    sides = {2: Dim("height", min=33, max=4096), 3: Dim("width", min=33, max=4096)}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=lowered):
        program = torch.export.export(model, (images(64, 96),), dynamic_shapes=({0: Dim("batch", max=64), **sides},))
        exported = program.module()
        for size in SIZES:
            same(exported(images(*size)), model(images(*size)))


class Sampled(nn.Module):
    """The part of a bridge whose windows are cut at some sizes."""

    def __init__(self):
        super().__init__()
        self.bridge = HiddenStateBridge(8, 8, halvings=2)

    def forward(self, image):
        _, rows, columns, _ = image.shape
        return self.bridge.sample(image.flatten(1, 2), (rows, columns))


@pytest.mark.slow
def test_a_compiled_package_cuts_windows_that_its_example_did_not(tmp_path):
    # of a whole number of windows
    example = torch.randn(1, 24, 32, 8)
    side = Dim.DYNAMIC(min=2, max=4096)
    program = torch.export.export(Sampled(), (example,), dynamic_shapes=({1: side, 2: side},))
    with warnings.catch_warnings():
        # of torch.jit, which the compiler uses itself
        warnings.simplefilter("ignore")
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "sampled.pt2"))
        package = torch._inductor.aoti_load_package(path)
    for size in [(24, 32), (25, 30), (9, 50)]:
        image = torch.randn(1, *size, 8)
        same(package(image), Sampled()(image))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_recorded_bridge_takes_the_means_of_the_other(dtype):
    image = torch.randn(2, 9, 14, 8).to(dtype)
    program = torch.export.export(Sampled(), (image,))
    expected = Sampled()(image)
    check_close("means", [program.module()(image)], [expected], [Sampled()(image.double())], dtype)


def test_traces_for_every_resolution():
    model = tiny()
    with warnings.catch_warnings(), torch.no_grad():
        # torch.jit is deprecated, and warns of the checks on sizes that it doesn't record; fvcore still needs it
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, images(45, 80))
        for size in SIZES:
            same(traced(images(*size)), model(images(*size)))
