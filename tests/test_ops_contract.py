"""What a torch operator owes its users: gradients to second order of truth, fakes, compile, export, autocast, FLOPs."""

import inspect
import re
from collections.abc import Callable

import device_checks as checks
import pytest
import torch
from cases import CASES, SMALL_CASES, Case
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from sola_vision import ops
from sola_vision.ops import reference

SCHEMAS = sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith("sola::"))


def _packet(name: str):
    return getattr(torch.ops.sola, name.removeprefix("sola::"))


def _arguments(case: Case, inputs):
    """The arguments with which the Python face calls the schema."""
    options = dict(case.options)
    if case.op == "layer_norm":
        return _packet(case.op).default, (*inputs, options.get("eps", 1e-5))
    if case.op in ("wkv", "shift_mix", "channel_mix"):
        return _packet(case.op).default, (*inputs,)
    if case.op == "softmax_attention":
        scale = options.get("scale", inputs[0].size(-1) ** -0.5)
        return torch.ops.sola.softmax_attention.default, (*inputs, scale, options.get("causal", False))
    shared = (options.get("feature_map", "elu1"), options.get("normalize", True), 1e-6)
    if case.decay is None and not options.get("causal"):
        return torch.ops.sola.linear_attention.default, (*inputs, *shared)
    decay = inputs[3] if case.decay is not None else None
    arguments = (*inputs[:3], decay, shared[0], options.get("causal", False), *shared[1:], 64)
    return torch.ops.sola.chunked_linear_attention.default, arguments


def test_every_schema_is_complete() -> None:
    """No op without a reference, a fake kernel, a FLOP formula, a gradient test and a case."""
    assert len(SCHEMAS) == 14
    tested = {_arguments(case, case.inputs(torch.float64))[0].name() for case in SMALL_CASES}
    for name in SCHEMAS:
        forward = name.removesuffix("_backward")
        face = forward.removeprefix("sola::").removeprefix("chunked_")
        assert callable(getattr(reference, face)), f"{name}: no reference"
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "Meta"), f"{name}: no fake"
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU"), f"{name}: no CPU kernel"
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "Autograd"), f"{name}: no autograd"
        assert _packet(name) in flop_registry, f"{name}: no FLOP formula"
        assert forward in tested, f"{name}: no case in SMALL_CASES"
        assert any(case.op == face for case in CASES), f"{name}: no case in CASES"


@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_gradcheck(case: Case) -> None:
    inputs = [tensor.requires_grad_() for tensor in case.inputs(torch.float64)]
    assert torch.autograd.gradcheck(lambda *tensors: case.run(list(tensors)), inputs, fast_mode=case.sizes[1] > 10)


@pytest.mark.parametrize("case", SMALL_CASES[::2], ids=str)
def test_second_derivative_is_an_error(case: Case) -> None:
    inputs = [tensor.requires_grad_() for tensor in case.inputs(torch.float64)]
    (grad,) = torch.autograd.grad(case.run(inputs).square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        grad.sum().backward()


# so many inputs of an operator begin with the batch; the others are its parameters
BATCHED_INPUTS = {"wkv": 2, "shift_mix": 1, "layer_norm": 1, "channel_mix": 2}


@pytest.mark.parametrize("shared", ["last", "parameters"])
@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_vmap(case: Case, shared: str) -> None:
    examples = [case.inputs(torch.float32, seed=seed) for seed in range(3)]
    own = len(examples[0]) - 1 if shared == "last" else BATCHED_INPUTS.get(case.op, 3)
    # what isn't shared lies along dimension 1
    batched = [torch.stack(tensors, 1) for tensors in zip(*(inputs[:own] for inputs in examples), strict=True)]
    rest = examples[0][own:]
    got = torch.vmap(lambda *tensors: case.run([*tensors, *rest]), in_dims=1)(*batched)
    for mine, inputs in zip(got, examples, strict=True):
        assert torch.equal(mine, case.run([*inputs[:own], *rest]))


@pytest.mark.parametrize("case", [case for case in SMALL_CASES if case.op != "shift_mix"], ids=str)
def test_many_gradients_at_once(case: Case) -> None:
    """As ``torch.autograd.functional.jacobian(vectorize=True)`` asks for them."""
    inputs = [tensor.requires_grad_() for tensor in case.inputs(torch.float32)]
    out = case.run(inputs)
    grads = torch.randn(3, *out.shape, generator=torch.Generator().manual_seed(1))
    together = torch.autograd.grad(out, inputs, grads, retain_graph=True, is_grads_batched=True)
    for number, grad in enumerate(grads):
        alone = torch.autograd.grad(out, inputs, grad, retain_graph=True)
        assert all(torch.equal(many[number], one) for many, one in zip(together, alone, strict=True))


def _loss_of(case: Case) -> Callable[..., Tensor]:
    return lambda *tensors: case.run(list(tensors)).square().sum()


@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_gradients_of_functions(case: Case) -> None:
    inputs = case.inputs(torch.float64)
    places = tuple(range(len(inputs)))
    wanted = torch.autograd.grad(_loss_of(case)(*[tensor.requires_grad_() for tensor in inputs]), inputs)
    inputs = [tensor.detach() for tensor in inputs]
    assert all(map(torch.equal, torch.func.grad(_loss_of(case), argnums=places)(*inputs), wanted))
    # as many at once as the result has elements
    jacobian = torch.func.jacrev(lambda *tensors: case.run(list(tensors)).flatten()[:3])(*inputs)
    out, vjp = torch.func.vjp(lambda first: case.run([first, *inputs[1:]]).flatten(), inputs[0])
    for row, one in zip(jacobian, torch.eye(len(out), dtype=out.dtype), strict=False):
        torch.testing.assert_close(row, vjp(one)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_gradients_of_every_example(case: Case) -> None:
    examples = [case.inputs(torch.float64, seed=seed) for seed in range(3)]
    tokens = BATCHED_INPUTS.get(case.op, 3)
    shared = examples[0][tokens:]
    batched = [torch.stack(tensors) for tensors in zip(*(inputs[:tokens] for inputs in examples), strict=True)]
    grad = torch.func.grad(_loss_of(case), argnums=tuple(range(tokens + len(shared))))
    got = torch.vmap(grad, in_dims=(0,) * tokens + (None,) * len(shared))(*batched, *shared)
    for number, inputs in enumerate(examples):
        for mine, wanted in zip(got, grad(*inputs[:tokens], *shared), strict=True):
            torch.testing.assert_close(mine[number], wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_gradients_of_functions_under_autocast(case: Case) -> None:
    inputs = case.inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = torch.autograd.grad(_loss_of(case)(*[tensor.requires_grad_() for tensor in inputs]), inputs)
        got = torch.func.grad(_loss_of(case), argnums=tuple(range(len(inputs))))(*[each.detach() for each in inputs])
    assert all(map(torch.equal, got, wanted))


# the rules of forward mode in torch are still decorated with torch.jit
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is ")
@pytest.mark.parametrize("case", SMALL_CASES[::2], ids=str)
def test_what_functions_may_not_ask_for(case: Case) -> None:
    inputs = case.inputs(torch.float64)
    with pytest.raises(NotImplementedError, match=rf"^{case.op}: forward-mode differentiation"):
        torch.func.jvp(_loss_of(case), tuple(inputs), tuple(inputs))
    with pytest.raises(RuntimeError, match=r"derivative for sola::\w+ is not implemented"):
        torch.func.grad(lambda x: torch.func.grad(_loss_of(case))(x, *inputs[1:]).sum())(inputs[0])


# the rules of forward mode in torch are still decorated with torch.jit
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is ")
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("case", SMALL_CASES[::2], ids=str)
def test_forward_mode_is_an_error(case: Case, training: bool) -> None:
    inputs = [tensor.requires_grad_(training) for tensor in case.inputs(torch.float32)]
    for place, tensor in enumerate(inputs):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(tensor, torch.ones_like(tensor))
            with pytest.raises(NotImplementedError, match=rf"^{case.op}: forward-mode .* \w+ has a tangent"):
                case.run([*inputs[:place], dual, *inputs[place + 1 :]])


# from torch 2.14 on the check itself looks there
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_opcheck(case: Case, training: bool) -> None:
    inputs = [tensor.requires_grad_(training) for tensor in case.inputs(torch.float32)]
    op, arguments = _arguments(case, inputs)
    torch.library.opcheck(op, arguments)


@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_compile_without_graph_breaks(case: Case) -> None:
    inputs = [tensor.requires_grad_() for tensor in case.inputs(torch.float32)]

    def function(*tensors):
        return case.run([tensor * 1.5 for tensor in tensors[:2]] + list(tensors[2:])).sin()

    torch._dynamo.reset()
    expected = function(*inputs)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    got = compiled(*inputs)
    torch.testing.assert_close(got, expected)
    wanted = torch.autograd.grad(expected.sum(), inputs)
    torch.testing.assert_close(torch.autograd.grad(got.sum(), inputs), wanted)


# inductor itself still decorates with torch.jit
@pytest.mark.filterwarnings("ignore:.torch.jit.script")
def test_compile_with_inductor() -> None:
    case = SMALL_CASES[0]
    inputs = case.inputs(torch.float32)
    compiled = torch.compile(lambda *tensors: case.run(list(tensors)) + 1, fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), case.run(inputs) + 1)


class _Module(torch.nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

    def forward(self, *inputs):
        return self.case.run(list(inputs))


@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_export_with_dynamic_tokens(case: Case) -> None:
    inputs = tuple(case.inputs(torch.float32))
    tokens = torch.export.Dim("tokens", min=2, max=4096)
    keys = torch.export.Dim("keys", min=2, max=4096)
    two_sizes = case.token_inputs == 3 and case.sizes[1] != case.sizes[2]
    counts = [tokens, keys, keys] if two_sizes else [tokens] * 3
    has_tokens = [i < case.token_inputs and x.dim() > 2 for i, x in enumerate(inputs)]
    shapes = tuple({1: counts[i]} if has_tokens[i] else None for i in range(len(inputs)))
    program = torch.export.export(_Module(case), inputs, dynamic_shapes=(shapes,))
    longer = tuple(torch.cat([x, x], 1) if has_tokens[i] else x for i, x in enumerate(inputs))
    torch.testing.assert_close(program.module()(*longer), case.run(list(longer)))


@pytest.mark.parametrize("case", [case for case in SMALL_CASES if case.op != "layer_norm"], ids=str)
def test_autocast_runs_tokens_in_bfloat16_and_keeps_parameters(case: Case) -> None:
    inputs = [tensor.requires_grad_() for tensor in case.inputs(torch.float32)]
    by_hand = case.run([t.bfloat16() if i < case.token_inputs else t for i, t in enumerate(inputs)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = case.run(inputs)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, by_hand)
    grads = torch.autograd.grad(out.float().sum(), inputs)
    assert all(grad.dtype == torch.float32 for grad in grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_leaves_a_norm_to_its_tokens(dtype: torch.dtype) -> None:
    """As PyTorch's: in the dtype that tokens have, with parameters in float32."""
    x, weight, bias = Case("layer_norm", (2, 5, 24)).inputs(torch.float32)
    x = x.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ops.layer_norm(x, weight, bias)
        theirs = torch.nn.functional.layer_norm(x, (24,), weight, bias)
    assert out.dtype == theirs.dtype == dtype
    assert torch.equal(out, ops.layer_norm(x, weight, bias))


def _expected_macs(case: Case) -> int:
    """The products of the definition of cost, written out from the sizes."""
    if case.op in ("wkv", "shift_mix", "layer_norm"):
        return 0
    if case.op == "channel_mix":
        batch, tokens, channels, hidden = case.sizes
        return batch * tokens * channels * (2 * hidden + channels)
    batch, queries, keys, heads, dim, value_dim = case.sizes
    options = dict(case.options)
    if case.op == "softmax_attention":
        pairs = sum(min(i + 1, keys) for i in range(queries)) if options.get("causal") else queries * keys
        return batch * heads * pairs * (dim + value_dim)
    if case.decay is None and not options.get("causal"):
        return batch * heads * (queries + keys) * dim * value_dim
    lengths = [min(64, queries - first) for first in range(0, queries, 64)]
    within = sum(length * length for length in lengths) * (dim + value_dim)
    across = (sum(lengths[1:]) + sum(lengths[:-1])) * dim * value_dim
    return batch * heads * (within + (1 if options.get("causal") else 2) * across)


@pytest.mark.parametrize("causal", [False, True])
def test_decays_that_nobody_learns(causal: bool) -> None:
    checks.decays_that_nobody_learns(checks.Device("cpu", ops, tokens=0), torch.ops.sola, causal=causal)


@pytest.mark.parametrize("case", [*SMALL_CASES, *CASES[::11]], ids=str)
def test_flop_counters_agree_with_the_formula(case: Case) -> None:
    inputs = [tensor.to("meta") for tensor in case.inputs(torch.float32)]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        case.run(inputs)
    assert counter.get_total_flops() == 2 * _expected_macs(case)


@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_backward_flops_count_two_to_three_forwards(case: Case) -> None:
    """Between twice the forward (each product has two gradients) and three times (products done again)."""
    inputs = [tensor.to("meta").requires_grad_() for tensor in case.inputs(torch.float32)]
    with FlopCounterMode(display=False) as counter:
        out = case.run(inputs)
        forward = counter.get_total_flops()
        out.sum().backward()
    backward = counter.get_total_flops() - forward
    assert 2 * forward <= backward <= 3 * forward


@pytest.mark.parametrize("name", ops.__all__)
def test_docstrings_state_the_contract(name: str) -> None:
    if not hasattr(torch.ops.sola, name):
        return
    text = inspect.getdoc(getattr(ops, name)) or ""
    for part in ("Args:", "Returns:", "Raises:", "Source", "``(B, "):
        assert part in text, f"{name}: its docstring lacks {part}"
    assert re.search(r"arXiv \d{4}\.\d{5}", text), f"{name}: its docstring names no source"
