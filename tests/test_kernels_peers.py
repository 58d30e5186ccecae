"""What stands beside our operators: the same results in float64, the same work, and errors that mean what they say."""

import threading
from contextlib import nullcontext

import pytest
import torch
from tolerances import check_close

import sola_vision
from sola_profile.cost.kernels import equal_products_tokens, work
from sola_profile.kernel_case import (
    BOTH,
    DECAYED,
    FORWARD,
    KERNEL_MODES,
    KERNELS,
    PLAIN_RETENTION,
    WITHOUT_HEADS,
    KernelCase,
    Shape,
)
from sola_profile.kernel_workload import make_inputs, make_step
from sola_profile.measure import accuracy
from sola_profile.measure.flop_counter import count_step
from sola_profile.peers import table
from sola_profile.peers.decay import chunk_length
from sola_profile.peers.swap import BEST, best_linear, operators_on, pytorch_operators
from sola_profile.peers.wkv import cumulative, token_loop
from sola_vision import ops
from sola_vision.ops import reference

# fewer tokens than a chunk, whole chunks, and a remainder
ATTENTION = ("2x3x1x5", "1x2x64x8", "1x2x150x8")
CHANNELS = ("2x1x5", "1x33x7", "2x150x9")


def cases(mode=FORWARD, dtype="float64", ops=tuple(KERNELS)):
    for op in ops:
        for shape in CHANNELS if op in WITHOUT_HEADS else ATTENTION:
            yield KernelCase(op, Shape.parse(shape), dtype, mode, 1)


def refer(case, inputs):
    """The definition in plain PyTorch."""
    if case.op == "wkv":
        return reference.wkv(*inputs)
    if case.op == "shift_mix":
        return accuracy.joined(reference.shift_mix(*inputs))
    if case.op == "layer_norm":
        return reference.layer_norm(*inputs)
    if case.op == "channel_mix":
        return reference.channel_mix(*inputs)
    if case.op == "softmax_attention":
        return reference.softmax_attention(*inputs)
    options = {"decay": inputs[3], "causal": case.op != "decay_attention"} if case.op in DECAYED else {}
    if case.op == PLAIN_RETENTION:
        options |= {"feature_map": "identity", "normalize": False}
    return reference.linear_attention(*inputs[:3], **options)


def with_gradients(function, inputs):
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = accuracy.joined(function(*leaves))
    upstream = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream, materialize_grads=True)]


@pytest.mark.parametrize("case", [*cases(BOTH, ops=(*KERNELS, PLAIN_RETENTION))], ids=str)
def test_every_route_computes_the_definition_and_its_gradients(case):
    inputs = make_inputs(case)
    exact = with_gradients(lambda *args: refer(case, args), inputs)
    for route in table.ROUTES[case.op]:
        got = with_gradients(route.function, inputs)
        # running sums lose as many digits as the weights of the ends differ by, e^5
        check_close(f"{case} {route.name}", got, exact, exact, torch.float64, conditioning=10)


@pytest.mark.parametrize("case", [*cases(FORWARD), *cases(BOTH)], ids=str)
def test_routes_have_no_error_in_float64(case):
    inputs = make_inputs(case)
    sampled = accuracy.sample(case, inputs)
    for route in table.ROUTES[case.op]:
        assert sampled.error(route.function, inputs) < 1e-11, route.name


@pytest.mark.parametrize("op", KERNELS)
def test_the_exact_rows_are_those_of_the_definition(op):
    case = next(case for case in cases() if case.op == op and case.shape.tokens == 150)
    inputs, rows = make_inputs(case), torch.tensor([0, 3, 149])
    torch.testing.assert_close(accuracy.exact_rows(op, inputs, rows), refer(case, inputs)[:, rows])


@pytest.mark.parametrize("op", ["linear_attention", "wkv", "shift_mix", "layer_norm", "channel_mix"])
def test_a_wrong_result_or_gradient_is_an_error(op, monkeypatch):
    # not all channels are looked at, but the same of every tensor
    monkeypatch.setattr(accuracy, "MOST_CHANNELS", 2)
    case = next(case for case in cases(BOTH) if case.op == op and case.shape.tokens == 150)
    inputs = make_inputs(case)
    sampled, function = accuracy.sample(case, inputs), table.ROUTES[op][0].function
    assert sampled.error(lambda *args: 1.01 * accuracy.joined(function(*args)), inputs) == pytest.approx(0.01, rel=0.01)

    def wrong_gradient(first, *rest):
        # the value of x + (0.1 x − 0.1 x), with a tenth more gradient
        return function(first + 0.1 * first - (0.1 * first).detach(), *rest)

    assert sampled.error(wrong_gradient, inputs) == pytest.approx(0.1, rel=0.01)


def test_the_sample_is_spread_and_grows_smaller_with_the_tokens():
    case = KernelCase("softmax_attention", Shape.parse("1x1x1000x4"), "float32", FORWARD, 1)
    rows = accuracy.sample(case, make_inputs(case)).rows.tolist()
    assert (len(rows), rows[0], rows[-1]) == (accuracy.MOST_ROWS, 0, 999)
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peers_of_wkv_hold_at_the_decays_they_are_timed_with(dtype):
    case = KernelCase("wkv", Shape.parse("1x3000x16"), str(dtype).removeprefix("torch."), FORWARD, 1)
    inputs = make_inputs(case)
    narrow = [x[..., :4].double() for x in inputs]
    exact = accuracy.exact_rows("wkv", narrow, torch.arange(0, 3000, 100))
    for peer, steps in ((cumulative, 64), (token_loop, 3000)):
        got = peer(*inputs)
        assert got.dtype == dtype
        error = (got[:, ::100, :4].double() - exact).abs().max() / exact.abs().max()
        # the loop's factor is rounded once and multiplied with itself for every token
        assert error < steps * torch.finfo(torch.float32).eps + torch.finfo(dtype).eps


@pytest.mark.parametrize("per", ["sequence", "token"])
def test_peers_of_wkv_know_both_decays(per):
    inputs = make_inputs(KernelCase("wkv", Shape.parse("1x8x4"), "float64", FORWARD, 1))
    for peer in (cumulative, token_loop):
        torch.testing.assert_close(peer(*inputs, decay_per=per), reference.wkv(*inputs, decay_per=per))


@pytest.mark.parametrize(
    ("tokens", "dim", "length"),
    [(1, 8, 1), (49, 32, 49), (196, 64, 49), (1024, 64, 64), (4096, 128, 128), (131, 64, 64), (150, 8, 50)],
)
def test_chunks_divide_the_tokens_where_they_can(tokens, dim, length):
    assert chunk_length(tokens, dim) == length


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("decayed", [False, True])
@pytest.mark.parametrize("feature_map", ops.FEATURE_MAPS)
def test_the_route_of_models_takes_every_option(causal, decayed, feature_map):
    inputs = make_inputs(KernelCase("decay_attention", Shape.parse("1x2x70x4"), "float64", FORWARD, 1))
    q, k, v = (x.abs() for x in inputs[:3])
    for normalize in (True, False):
        options = {"causal": causal, "feature_map": feature_map, "normalize": normalize}
        decay = inputs[3] if decayed else None
        expected = reference.linear_attention(q, k, v, decay=decay, **options)
        torch.testing.assert_close(best_linear(q, k, v, decay=decay, **options), expected)


def test_a_swapped_model_computes_the_same_and_is_put_back():
    torch.manual_seed(0)
    model = sola_vision.create_model("sola_t").eval()
    image = torch.randn(1, 3, 64, 64)
    own = ops.wkv
    with torch.inference_mode():
        ours = model(image)
        with pytorch_operators():
            assert ops.wkv is not own
            torch.testing.assert_close(model(image), ours, rtol=1e-4, atol=1e-5)
    assert ops.wkv is own
    nobody = sola_vision.create_model("sola_t", mixers={"L": "decay"}).eval()
    with pytorch_operators(), torch.no_grad():
        assert nobody(torch.randn(0, 3, 32, 32)).shape == (0, 1000)
    with pytest.raises(ValueError, match="must be"), pytorch_operators():
        raise ValueError("it must be put back")
    assert ops.wkv is own


@pytest.mark.parametrize("last", ["first opened", "second opened"])
@pytest.mark.parametrize("inner", [pytorch_operators, lambda: operators_on("mps"), lambda: operators_on("cpu")])
def test_blocks_that_overlap_leave_no_operator_replaced(inner, last):
    own = {name: getattr(ops, name) for name in BEST}
    first, second = pytorch_operators(), inner()
    first.__enter__()
    second.__enter__()
    assert {name: getattr(ops, name) for name in BEST} == BEST
    order = (second, first) if last == "first opened" else (first, second)
    order[0].__exit__(None, None, None)
    if last == "first opened" or inner is pytorch_operators:
        assert ops.layer_norm is BEST["layer_norm"]
    order[1].__exit__(None, None, None)
    assert {name: getattr(ops, name) for name in BEST} == own


def test_threads_share_the_replaced_operators():
    own = ops.wkv
    opened, closed = threading.Event(), threading.Event()

    def other():
        with pytorch_operators():
            opened.set()
            closed.wait(60)

    thread = threading.Thread(target=other, daemon=True)
    with pytorch_operators():
        thread.start()
        assert opened.wait(60)
    assert ops.wkv is BEST["wkv"]
    closed.set()
    thread.join(60)
    assert ops.wkv is own


@pytest.mark.parametrize("mixer", ["wkv", "linear", "decay"])
def test_a_swapped_model_trains_the_same(mixer):
    torch.manual_seed(0)
    model = sola_vision.create_model("sola_t", mixers={"L": mixer}, num_classes=3)
    image = torch.randn(2, 3, 64, 64)

    def gradients(where):
        model.zero_grad()
        with where:
            model(image).square().sum().backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    ours, theirs = gradients(nullcontext()), gradients(pytorch_operators())
    assert (theirs - ours).norm() < 1e-5 * ours.norm()


@pytest.mark.parametrize("mode", KERNEL_MODES)
@pytest.mark.parametrize("op", [*KERNELS, PLAIN_RETENTION])
def test_work_is_what_the_counter_counts(op, mode):
    for shape in ("2x4x33x7", "1x2x200x8") if op not in WITHOUT_HEADS else ("2x33x5",):
        case = KernelCase(op, Shape.parse(shape), "float32", mode, 1)
        step = make_step(case, table.ROUTES[op][0].function, make_inputs(case, "meta"))
        assert work(case).macs == count_step(step).macs


def test_bytes_and_exponentials():
    forward = work(KernelCase("softmax_attention", Shape.parse("2x3x10x4"), "bfloat16", FORWARD, 1))
    assert (forward.moved_bytes, forward.exponentials) == (4 * 240 * 2, 600)
    assert forward.flops == 2 * forward.macs == 2 * 2 * 600 * 4
    both = work(KernelCase("wkv", Shape.parse("2x10x4"), "float32", BOTH, 1))
    assert (both.macs, both.moved_bytes, both.exponentials) == (0, 8 * 80 * 4, 3 * 80)
    both = work(KernelCase("shift_mix", Shape.parse("2x10x4"), "float32", BOTH, 1))
    # x and three mixes; x, three gradients and one
    assert (both.macs, both.moved_bytes, both.exponentials) == (0, 9 * 80 * 4, 0)
    forward, both = (work(KernelCase("channel_mix", Shape.parse("2x10x4"), "float32", m, 1)) for m in KERNEL_MODES)
    # 9·C² weights; x_k, x_r and the result, and with a backward both again, its gradient and two
    assert (forward.moved_bytes, forward.exponentials) == ((3 * 80 + 9 * 16) * 4, 80)
    assert (both.moved_bytes, both.exponentials) == ((8 * 80 + 3 * 9 * 16) * 4, 160)


@pytest.mark.parametrize("mode", KERNEL_MODES)
def test_equal_products(mode):
    softmax, linear = (
        work(KernelCase(op, Shape.parse("1x1x4200x70"), "float32", mode, 1)).macs
        for op in ("softmax_attention", "linear_attention")
    )
    assert 4200 * linear / softmax == pytest.approx(equal_products_tokens(70, mode))


def test_refusals_name_their_reason():
    small, large = (
        KernelCase("softmax_attention", Shape.parse(s), "float32", FORWARD, 1) for s in ("1x1x8x8", "1x3x16384x32")
    )
    eager = next(route for route in table.ROUTES["softmax_attention"] if route.name == "eager")
    assert eager.refusal(small) == ""
    assert eager.refusal(large) == "each N × N buffer would take 3.00 GiB, more than 1 GiB"
    loop = next(route for route in table.ROUTES["wkv"] if route.name == "loop")
    assert "16,384 tokens" in loop.refusal(KernelCase("wkv", Shape.parse("1x16384x96"), "float32", FORWARD, 1))


@pytest.mark.parametrize("op", KERNELS)
def test_compiled_routes_have_no_graph_break(op, monkeypatch):
    route = table.routes(op, compiled=True)[-1]
    assert route.compiled
    assert route not in table.routes(op, compiled=False)
    compiler = torch.compile
    # tracing alone: generating code takes longer than all other tests
    monkeypatch.setattr(torch, "compile", lambda function, **options: compiler(function, backend="eager", **options))
    case = next(case for case in cases() if case.op == op and case.shape.tokens == 150)
    inputs = make_inputs(case)
    torch.testing.assert_close(accuracy.joined(table.compile_route(route)(*inputs)), refer(case, inputs))
