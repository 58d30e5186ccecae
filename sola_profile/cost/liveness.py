"""Predicted peak memory: follow every storage from birth to death while the model runs on the ``meta`` device.

Meta tensors have sizes and no data, so a run costs neither memory nor arithmetic, and the order of births and deaths
is that of the real run: the same Python, the same autograd graph, the same reference counts. Works for any module.

What it can't see are buffers inside an operator; ``sola_profile.cost.workspaces`` models the large ones.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sola_profile.case import Resolution
from sola_profile.cost.as_run import laid_out_as_run, parts_as_run, stepped_as_run
from sola_profile.cost.cpu_attention import cpu_attention
from sola_profile.cost.cpu_group_norm import cpu_group_norm
from sola_profile.cost.cpu_lstm import cpu_lstm
from sola_profile.cost.native_attention import native_attention
from sola_profile.cost.workspaces import Workspaces, workspaces_on
from sola_profile.memory import Moment, PeakMemory
from sola_profile.running_modules import RunningModules
from sola_profile.workload import Workload

# as many as a chart can show
MOST_MOMENTS = 400


def predict_peak(workload: Workload, resolution: Resolution) -> PeakMemory:
    """Peak memory of one step of a ``meta`` workload at an image size."""
    return follow_step(workload, resolution)[0]


def follow_step(workload: Workload, resolution: Resolution) -> tuple[PeakMemory, tuple[Moment, ...]]:
    """Peak memory of one step of a ``meta`` workload, and how much of it is alive as the step goes on."""
    image = workload.image(resolution)
    static = [*workload.model.parameters(), *workload.model.buffers()]
    step = workload.step(image)
    if workload.optimizer is not None:
        # the first step makes what the optimizer keeps
        step()
    kept = _kept(workload.optimizer)
    liveness = Liveness([*static, *kept, image], workspaces_on(workload.settings.device_type))
    hooks = [parameter.register_post_accumulate_grad_hook(liveness.is_gradient) for parameter in _trained(workload)]
    with ExitStack() as contexts:
        if not workload.settings.checkpointing:
            # the tracker holds on to what a checkpoint computes again
            modules = contexts.enter_context(RunningModules())
            liveness.where = lambda: _innermost(modules.parents)
        contexts.enter_context(native_attention(workload.settings.device_type))
        contexts.enter_context(liveness)
        if workload.settings.device_type == "cpu":
            contexts.enter_context(cpu_attention())
            contexts.enter_context(cpu_group_norm())
            contexts.enter_context(cpu_lstm())
        step()
    for hook in hooks:
        hook.remove()
    peak = PeakMemory(
        storage_bytes(static),
        storage_bytes([image]),
        liveness.peak_bytes,
        liveness.peak_at,
        storage_bytes(kept),
        liveness.peak_gradient_bytes,
    )
    return peak, condensed(liveness.history)


def condensed(moments: Sequence[Moment], most: int = MOST_MOMENTS) -> tuple[Moment, ...]:
    """At most about so many moments in their order: of every stretch the lowest and the highest."""
    length = max(1, -(-2 * len(moments) // most))
    kept = []
    for start in range(0, len(moments), length):
        stretch = range(start, min(start + length, len(moments)))
        ends = {pick(stretch, key=lambda place: moments[place].live_bytes) for pick in (min, max)}
        kept += [moments[place] for place in sorted(ends)]
    return tuple(kept)


def _kept(optimizer: torch.optim.Optimizer | None) -> list[Tensor]:
    """What an optimizer keeps between steps."""
    states = [] if optimizer is None else list(optimizer.state.values())
    return [value for state in states for value in state.values() if isinstance(value, Tensor)]


def _trained(workload: Workload) -> list[Tensor]:
    return [parameter for parameter in workload.model.parameters() if parameter.requires_grad]


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes behind some tensors, shared storages once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _innermost(parents: Iterable[str]) -> str:
    # names of modules that are running start with the class of the root; the longest is the innermost
    return max(parents, key=len, default="").partition(".")[2]


class Liveness(TorchDispatchMode):
    """Counts the bytes of all storages that were born under it and are still alive.

    ``known``: tensors that live before and after; their storages are never counted. ``workspaces``: operator →
    bytes that it holds inside at its moments, from its result and its arguments. ``size``: what to make of a size of
    torch's before it is added up. ``on_death`` is told the address of every storage that dies.
    """

    def __init__(
        self,
        known: Iterable[Tensor] = (),
        workspaces: Workspaces | None = None,
        size: Callable[[Any], Any] = lambda value: value,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._size = size
        self._workspaces = workspaces or {}
        self.live_bytes: Any = 0
        self.peak_bytes = 0
        self.peak_at = ""
        self.peak_gradient_bytes = 0
        self.history: list[Moment] = []
        self._gradient_bytes = 0
        self._gradients: set[int] = set()
        self.where: Callable[[], str] = str
        self.on_death: Callable[[int], object] = lambda _: None
        self._storages: dict[int, weakref.ref[Any]] = {}
        for tensor in known:
            self._follow(tensor, born=False)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        # inference_mode hands composite operators over whole; what runs are their parts
        if func is not torch.ops.prim.device.default:
            with self:
                parts = self._parts(func, args, kwargs)
            if parts is not NotImplemented:
                return parts
        out = self._as_run(func, args, func(*args, **kwargs))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._follow(leaf)
        for workspace_bytes in self._workspaces.get(func, _nothing)(out, *args):
            self._mark(self.live_bytes + self._size(workspace_bytes), func)
        return out

    def _parts(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return parts_as_run(func, args, kwargs)

    def _as_run(self, func: Any, args: tuple[Any, ...], out: Any) -> Any:
        return laid_out_as_run(func, args, out)

    def _mark(self, live_bytes: Any, func: Any) -> None:
        self.history.append(Moment(self._place(func), live_bytes))
        if live_bytes > self.peak_bytes:
            self.peak_bytes = live_bytes
            self.peak_at = self.history[-1].place
            self.peak_gradient_bytes = self._gradient_bytes

    def is_gradient(self, parameter: Tensor) -> None:
        """The gradient of a parameter is complete; what holds it counts as gradients from now on."""
        assert parameter.grad is not None
        storage = parameter.grad.untyped_storage()
        if storage._cdata in self._storages and storage._cdata not in self._gradients:
            self._gradients.add(storage._cdata)
            self._gradient_bytes += storage.nbytes()

    def _place(self, func: Any) -> str:
        return f"{self.where()} {func._overloadpacket}".strip()

    def _follow(self, tensor: Tensor, *, born: bool = True) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return
        size_bytes = self._size(storage.nbytes()) if born else 0

        def died(_: object) -> None:
            del self._storages[key]
            self.live_bytes -= size_bytes
            self.on_death(key)
            if key in self._gradients:
                self._gradients.remove(key)
                self._gradient_bytes -= size_bytes

        self._storages[key] = weakref.ref(storage, died)
        self.live_bytes += size_bytes


def _nothing(*_: object) -> tuple[int, ...]:
    return (0,)


class SymbolicLiveness(Liveness):
    """The same for sizes that are polynomials: which moment is the peak depends on them, so all that may be are kept.

    ``size``: turns a size of torch's into a polynomial or a number. ``moments``: place → live bytes there.
    """

    def __init__(self, known: Iterable[Tensor], workspaces: Workspaces, size: Callable[[Any], Any]) -> None:
        super().__init__(known, workspaces, size)
        self.moments: list[tuple[str, Any]] = []

    def _parts(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # the parts of C++ don't take symbols everywhere
        return func.decompose(*args, **kwargs)

    def _as_run(self, func: Any, args: tuple[Any, ...], out: Any) -> Any:
        return stepped_as_run(func, args, out)

    def _mark(self, live_bytes: Any, func: Any) -> None:
        self.moments.append((self._place(func), live_bytes))
