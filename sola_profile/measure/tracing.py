"""Lets ``torch.jit`` trace a module on the meta device, so that fvcore needs neither memory nor arithmetic.

While a trace is being recorded every size reads as a tensor, and the meta kernels that are written in Python
stumble over that. ``MetaTracing`` runs operators in a second thread, where nothing is recorded; the operators
themselves have been recorded by then. Convolutions are the exception: the tracer records them one level further down,
where meta has no kernel, so they are entered by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

# benchmark, deterministic, cudnn_enabled, allow_tf32: what aten::_convolution takes beyond aten::convolution
_CUDNN_SWITCHES = (False, False, False, False)


class MetaTracing(TorchDispatchMode):
    """A context in which ``torch.jit`` traces of modules on meta work."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._thread = ThreadPoolExecutor(max_workers=1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        self._thread.shutdown()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        def run() -> Any:
            with torch.no_grad():
                return func(*args, **(kwargs or {}))

        # views must be made in the thread of their base, and their kernels are not in Python
        out = run() if func.is_view else self._thread.submit(run).result()
        if func is aten.convolution.default:
            _record_convolution(args, out)
        return out


def _record_convolution(args: tuple[Any, ...], out: Tensor) -> None:
    """Enter ``out = aten::_convolution(args…)`` into the trace."""
    # torch's stubs leave these out
    tracer: Any = torch._C
    graph = tracer._get_tracing_state().graph()
    inputs = [
        tracer._get_value_trace(value) if isinstance(value, Tensor) else graph.insertConstant(value)
        for value in (*args, *_CUDNN_SWITCHES)
    ]
    node = graph.create("aten::_convolution", inputs, 1)
    graph.insertNode(node)
    node.output().inferTypeFrom(out)
    tracer._set_value_trace(out, node.output())
