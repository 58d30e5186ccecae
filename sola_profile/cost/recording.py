"""Every operator call of one forward pass, by shapes alone: under fake tensors, whose sides may be symbols.

Fake tensors behave like those of the CPU, so what is recorded is what runs there: the same kernels are chosen, no data is
touched. With ``H = stride·h`` and ``W = stride·w`` for symbols h and w, every shape that the model makes is a polynomial
in h and w where its divisions by strides, patches and windows come out even; one that doesn't is ``NotPolynomial``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from sympy.polys.rings import PolyElement
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import LocalSource
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from sola_profile.case import Resolution
from sola_profile.cost.as_run import kernels_as_run
from sola_profile.cost.families import Place, place_of
from sola_profile.cost.liveness import SymbolicLiveness, storage_bytes
from sola_profile.cost.native_attention import native_attention
from sola_profile.cost.reuse import Death, Event, Touch
from sola_profile.cost.symbols import COLUMNS, RING, ROWS, NotPolynomial, Symbols
from sola_profile.cost.work import BY_KIND, COMPLEX, Operand, Size, Work, formula_for, of_complex
from sola_profile.cost.workspaces import buffers_of, workspaces_on
from sola_profile.errors import first_line
from sola_profile.operators import operator_kind
from sola_profile.peers.swap import operators_on
from sola_profile.running_modules import RunningModules
from sola_profile.source import BuildError, InputShape, ModelSource

# an image of 7 × 8 strides: two different numbers, neither 0 nor 1, which torch would make constants
HINT = (7, 8)


@dataclass(frozen=True)
class Call:
    """One operator call, or ``number`` of them added up. ``module``: path of the innermost module that runs.

    ``kind``: of its product (``cost.work.PRODUCT_KINDS``), else what ``operator_kind`` says; empty when nobody knows,
    and then its work is unknown too. ``operator``: ``namespace::name``, of products of complex numbers with COMPLEX behind
    it. ``place``: which rate of a machine speaks for it; None for calls of symbolic shapes
    and for sums of calls.
    """

    operator: str
    module: str
    kind: str
    work: Work
    read_bytes: Size
    written_bytes: Size
    number: int = 1
    place: Place | None = None


@dataclass(frozen=True)
class Recording:
    """All calls of one forward pass. ``patch``: pixels of the image per position of the first convolution's result, a side;
    1 where they aren't in a whole ratio.

    ``grid``: rows and columns of what N counts, those of the first convolution's result or of an image without one; None
    for symbolic sides.

    ``static_bytes``: of weights and buffers. ``input_bytes``: of the image batch. ``moments``: place → bytes that the
    pass holds there on top of both, for every moment that may be the peak at some size.
    ``conditions``: what the model, or torch, asked of h and w on its way, such as ``h·w > 40`` or that a table of
    positions has another size; other images may take another way.
    """

    calls: tuple[Call, ...]
    parameters: int
    patch: int
    static_bytes: int
    input_bytes: Size
    moments: tuple[tuple[str, Size], ...]
    conditions: tuple[sympy.Basic, ...] = ()
    views: int = 0
    modules: int = 0
    events: tuple[Event, ...] = ()
    grid: tuple[int, int] | None = None


def record_symbolic(source: ModelSource, shape: InputShape, dtype: str, stride: int, limit_s: float) -> Recording:
    """Calls with polynomials in h and w for sizes, where the image has stride·h × stride·w pixels.

    Raises ``NotPolynomial`` where some shape is none, or when ``limit_s`` seconds are over.
    """
    environment = ShapeEnv(duck_shape=False)
    with _fake(environment) as mode:
        model = _fake_model(mode, source, None, dtype)
        sides: Any = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC, DimDynamic.DYNAMIC])
        with unset_fake_temporarily():
            plain = torch.empty(HINT)
        grid = mode.from_tensor(plain, source=LocalSource("grid"), symbolic_context=sides)
        symbols = Symbols(environment, list(grid.shape), time.monotonic() + limit_s)
        image = torch.empty(shape.at(stride * grid.shape[0], stride * grid.shape[1]), dtype=getattr(torch, dtype))
        return _record(model, image, symbols, (stride * ROWS, stride * COLUMNS))


def record_at(
    source: ModelSource,
    shape: InputShape,
    dtype: str,
    resolution: Resolution,
    *,
    sized: bool = False,
    device_type: str = "cpu",
) -> Recording:
    """Calls with whole numbers for sizes, at one size of the image; ``sized`` builds the model for that size.

    ``device_type``: whose operators are recorded where ours have no kernels everywhere.
    """
    with _fake(None, device_type) as mode, operators_on(device_type):
        model = _fake_model(mode, source, resolution if sized else None, dtype)
        image = torch.empty(shape.at(resolution.height, resolution.width), dtype=getattr(torch, dtype))
        return _record(model, image, None, (resolution.height, resolution.width))


def record_module(make: Callable[[], nn.Module], shape: Sequence[int], dtype: str = "float32") -> Recording:
    """Calls of a module that ``make`` builds, for an input of a fixed shape."""
    with _fake(None) as mode:
        model = make().eval()
        _make_fake(model, mode, getattr(torch, dtype))
        return _record(model, torch.empty(tuple(shape), dtype=getattr(torch, dtype)), None, (shape[-2], shape[-1]))


@contextmanager
def _fake(environment: ShapeEnv | None, device_type: str = "cpu") -> Iterator[FakeTensorMode]:
    """Fake CPU tensors, with multi-head attention taken apart into its products.

    ``device_type``: whose way of computing attention they take.
    """
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    # a shape that can't be had is a finding here, and torch would print its stack
    log.setLevel(logging.CRITICAL)
    try:
        with native_attention(device_type), FakeTensorMode(shape_env=environment, allow_non_fake_inputs=True) as mode:
            yield mode
    finally:
        log.setLevel(level)


def _fake_model(mode: FakeTensorMode, source: ModelSource, resolution: Resolution | None, dtype: str) -> nn.Module:
    """The model with fake weights of a dtype; built with real ones where its constructor looks at numbers."""
    try:
        model = source.build(resolution)
    except ValueError:
        raise
    except Exception:
        try:
            with unset_fake_temporarily():
                model = source.build(resolution)
        except Exception as error:
            raise BuildError(f"model: {source.name} can't be built: {type(error).__name__}: {error}") from error
    _check_followable(model, source.name)
    _make_fake(model, mode, getattr(torch, dtype))
    return model


def _check_followable(model: nn.Module, name: str) -> None:
    """Raises ``BuildError`` for modules whose weights can't be exchanged for some without data."""
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            where = f"holds a torch.jit.ScriptModule at {path}" if path else "is a torch.jit.ScriptModule"
            raise BuildError(
                f"model: {name} {where}, which can't be followed; expected the module that it was made from"
            )
    tensors = [*model.named_parameters(), *model.named_buffers()]
    lazy = [path for path, tensor in tensors if torch.nn.parameter.is_lazy(tensor)]
    if lazy:
        raise BuildError(
            f"model: {name} has weights without a shape ({', '.join(lazy)}); expected one whose lazy modules have run once"
        )


def _make_fake(model: nn.Module, mode: FakeTensorMode, dtype: torch.dtype) -> None:
    """Replace all weights and buffers; ``Module.to`` can't, since fake tensors are held weakly elsewhere."""
    known: dict[int, Tensor] = {}

    def converted(tensor: Tensor) -> Tensor:
        if id(tensor) not in known:
            plain = tensor.detach()
            fake: Tensor = plain if isinstance(plain, FakeTensor) else mode.from_tensor(plain, static_shapes=True)
            fake = fake.to(dtype) if fake.is_floating_point() else fake
            known[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
        return known[id(tensor)]

    for module in model.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for table in tables:
            table.update({name: converted(tensor) for name, tensor in table.items() if tensor is not None})


def _record(model: nn.Module, image: Tensor, symbols: Symbols | None, sides: tuple[Size, Size]) -> Recording:
    static = [*model.parameters(), *model.buffers()]
    recorder = _Recorder(static, image, symbols)
    size: Callable[[Any], Size] = int if symbols is None else symbols.size
    liveness = SymbolicLiveness([*static, image], workspaces_on("cpu"), size)
    if symbols is None:
        liveness.on_death = lambda storage: recorder.events.append(Death(storage))
    with RunningModules() as modules:
        recorder.parents = lambda: modules.parents
        liveness.where = recorder.where
        try:
            with torch.no_grad(), enable_python_dispatcher(), kernels_as_run(), recorder, liveness:
                model(image)
        except NotPolynomial:
            raise
        except Exception as error:
            if symbols is None:
                raise
            # what a model does with a symbol that it takes for a number is without bounds
            symbols.check()
            raise NotPolynomial(f"the model refuses symbolic sides: {symbols.named(first_line(error))}") from error
    conditions: tuple[sympy.Basic, ...] = ()
    if symbols is not None:
        symbols.check()
        conditions = symbols.conditions()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    input_bytes = size(image.untyped_storage().nbytes())
    moments = tuple(highest(liveness.moments))
    calls = tuple(recorder.calls)
    return Recording(
        calls,
        parameters,
        _patch(recorder.grid or sides, sides),
        int(storage_bytes(static)),
        input_bytes,
        moments,
        conditions,
        recorder.views,
        sum(1 for _ in model.modules()),
        tuple(recorder.events),
        (recorder.grid or sides) if symbols is None else None,
    )


def highest(moments: Sequence[tuple[str, Size]]) -> Iterator[tuple[str, Size]]:
    """The moments that may be the peak: those that no other exceeds in every coefficient, the first of equals."""
    kept: list[tuple[str, Size]] = []
    for place, size in moments:
        if any(_exceeds(other, size) for _, other in kept):
            continue
        kept = [(name, other) for name, other in kept if not _exceeds(size, other)]
        kept.append((place, size))
    yield from kept


def _exceeds(high: Size, low: Size) -> bool:
    """Whether ``high ≥ low`` for every h, w ≥ 1 shows in the coefficients: each power has no less."""
    if isinstance(high, int) and isinstance(low, int):
        return high >= low
    return all(coefficient >= 0 for coefficient in (RING(high) - RING(low)).coeffs())


def _patch(grid: tuple[Size, Size], sides: tuple[Size, Size]) -> int:
    """Pixels per position, the same for rows and columns; 1 where they aren't in a whole ratio."""
    rows, height = grid[0], sides[0]
    ratio = round(float(height(*HINT) / rows(*HINT))) if isinstance(rows, PolyElement) else round(height / max(rows, 1))
    return ratio if ratio and all(count * ratio == side for count, side in zip(grid, sides, strict=True)) else 1


class _Recorder(TorchDispatchMode):
    """Writes down every call that reaches a kernel and has something to do there."""

    def __init__(self, constants: list[Tensor], image: Tensor, symbols: Symbols | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self.parents: Any = set
        self.grid: tuple[Size, Size] | None = None
        self.views = 0
        self.events: list[Event] = []
        self._symbols = symbols
        self._constants = {_storage(tensor) for tensor in constants}
        self._image = _storage(image)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if self._symbols is not None:
            self._symbols.check()
        kwargs = dict(kwargs or {})
        if func is not torch.ops.prim.device.default:
            # composite operators come whole now and then; what runs are their parts
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        self._write(func, out, args, kwargs)
        return out

    def _write(self, func: Any, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # what a result is written into is no operand
        kwargs = {name: value for name, value in kwargs.items() if name != "out"}
        operator = called = str(func._overloadpacket._qualified_op_name)
        shown = tree_map(self._operand, (out, args, kwargs))
        result, operands, options = shown
        kind = operator_kind(operator)
        formula = formula_for(operator) or BY_KIND.get(kind)
        work = Work() if formula is None else formula(result, *operands, **options)
        if any(leaf.is_complex() for leaf in tree_leaves((out, args)) if isinstance(leaf, Tensor)):
            work = of_complex(operator, work)
            called = operator + (COMPLEX if work.macs else "")
        # without a formula its work is unknown, whatever it is for
        kind = "" if formula is None else work.kind or kind or "other"
        if "convolution" in kind and self.grid is None and len(result.shape) == 4:
            self.grid = (result.shape[2], result.shape[3])
        read, written = self._traffic(func, out, (args, kwargs))
        idle = read == 0 and written == 0 and work.macs == 0 and not work.scalar_ops
        if idle and kind:
            # a view, or a question about a device
            self.views += 1
            return
        place = None
        if self._symbols is None:
            place = place_of(operator, out, args, kwargs)
            self._follow(func, out, args, kwargs)
        self.calls.append(Call(called, self.where(), kind, work, read, written, place=place))

    def where(self) -> str:
        """Path of the innermost module that runs."""
        return max(self.parents(), key=len, default="").partition(".")[2]

    def _traffic(self, func: Any, out: Any, inputs: Any) -> tuple[Size, Size]:
        """Bytes read and written; none where the result is a view of an operand and nothing is written into it."""
        operands = {id(leaf): leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)}
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        storages = {_storage(tensor) for tensor in operands.values()}
        if not func._schema.is_mutable and all(_storage(tensor) in storages for tensor in results):
            return 0, 0
        written = sum((self._bytes(tensor) for tensor in results), start=0)
        if func._overloadpacket.__name__ in _GATHERS:
            # of the table only what is taken is read
            indices = [tensor for tensor in operands.values() if not tensor.is_floating_point()]
            return written + sum((self._bytes(tensor) for tensor in indices), start=0), written
        return sum((self._bytes(tensor) for tensor in operands.values()), start=0), written

    def _follow(self, func: Any, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Write down what the call that comes next touches, and the blocks that it takes for itself."""
        self._touch((args, kwargs))
        given_back, kept = buffers_of(func, out, args, kwargs)
        # no storage has such a number
        blocks = {-1 - index: size for index, size in enumerate((*given_back, *kept)) if size}
        self.events += [Touch(len(self.calls), block, 0, size) for block, size in blocks.items()]
        self.events += [Death(block) for block in blocks if -block <= len(given_back)]
        self._touch(out)
        self.events += [Death(block) for block in blocks if -block > len(given_back)]

    def _touch(self, tensors: Any) -> None:
        """Write down which blocks the call that comes next touches."""
        for leaf in tree_leaves(tensors):
            if not isinstance(leaf, Tensor):
                continue
            storage = _storage(leaf)
            touched_bytes, block_bytes = int(self._bytes(leaf)), int(leaf.untyped_storage().nbytes())
            lasting = storage == self._image or storage in self._constants
            self.events.append(Touch(len(self.calls), storage, touched_bytes, block_bytes, lasting))

    def _bytes(self, tensor: Tensor) -> Size:
        operand = self._operand(tensor)
        return operand.elements * operand.itemsize

    def _operand(self, value: Any) -> Any:
        if isinstance(value, torch.SymInt):
            return self._size(value)
        if not isinstance(value, Tensor):
            return value
        shape = tuple(self._size(side) for side in value.shape)
        count: Size = 1
        for side, step in zip(shape, value.stride(), strict=True):
            # a step of 0 repeats the same element
            count *= 1 if isinstance(step, int) and step == 0 else side
        return Operand(shape, value.element_size(), count, _storage(value) in self._constants)

    def _size(self, value: int | torch.SymInt) -> Size:
        return int(value) if self._symbols is None else self._symbols.size(value)


_GATHERS = frozenset(("index", "index_select", "gather", "embedding", "take"))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
