"""Recording a computation as a CUDA graph, and telling beforehand whether it can be recorded.

A graph repeats the launches of a recorded run on the same memory. So nothing in it may depend on a
number that the host reads or chooses anew each time, and every tensor it touches must stay alive.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

#: One recording at a time: torch's memory pools are shared by the process.
_lock = threading.Lock()
_streams = threading.local()

#: Operations whose result, or the size of whose result, the host waits for.
_WAITING = frozenset(
    {
        "aten::_local_scalar_dense",
        "aten::bincount",
        "aten::equal",
        "aten::is_nonzero",
        "aten::item",
        "aten::masked_select",
        "aten::nonzero",
        "aten::unique_consecutive",
        "aten::unique_dim",
        "aten::_unique",
        "aten::_unique2",
    }
)
#: Operations that wait for the host's values of their index arguments.
_INDEXING = frozenset({"aten::index", "aten::index_put", "aten::index_put_"})
_COPYING = frozenset({"aten::copy_", "aten::_to_copy"})


class HostInvolvedError(RuntimeError):
    """A computation that was to be recorded waits for the host or takes data from it."""


class WithoutHost(TorchDispatchMode):
    """Raises :class:`HostInvolvedError` where an operation on ``device`` involves the host.

    Finds reads of values (``.item()``, branches on tensors, ``nonzero``), tensors made of Python
    numbers and copies between devices; the names of operations are those of ATen.
    """

    def __init__(self, device: torch.device):
        super().__init__()
        # a tensor's device has an index, that of a model may have none
        self.device = torch.empty(0, device=device).device

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name
        inputs = [argument for argument in args if isinstance(argument, Tensor)]
        here = any(tensor.device == self.device for tensor in inputs)
        if here and (name in _WAITING or _waits(name, args, kwargs or {})):
            raise HostInvolvedError(f"{name} waits for a value on the host")
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.device == self.device:
            if name == "aten::lift_fresh":
                raise HostInvolvedError("a tensor is made of Python numbers")
            # a single number of the host is passed by value, unless it is copied
            moved = inputs if name in _COPYING else [tensor for tensor in inputs if tensor.ndim]
            if any(tensor.device != self.device for tensor in moved):
                raise HostInvolvedError(f"{name} takes data from another device")
        elif isinstance(result, Tensor) and here:
            raise HostInvolvedError(f"{name} hands data to another device")
        return result


def _waits(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if name == "aten::repeat_interleave":
        return kwargs.get("output_size") is None and isinstance(args[0], Tensor)
    if name in _INDEXING:
        indices = args[1] if len(args) > 1 else kwargs.get("indices", ())
        # a boolean index is turned into positions, however many there are
        return any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
            for index in indices
        )
    return False


@dataclass(eq=False)
class Recording:
    """A recorded computation: :meth:`replay` runs it again on the same memory.

    Attributes:
        output: its result; each replay overwrites it.
        nbytes: device memory reserved for what the computation allocates.
    """

    output: Tensor
    nbytes: int
    graph: Any

    def replay(self) -> Tensor:
        self.graph.replay()
        return self.output


def why_not(device: torch.device) -> str | None:
    """Why nothing can be recorded on a device; None where it can be tried."""
    if device.type != "cuda":
        return f"the model is on {device}, and CUDA graphs need a CUDA device"
    if torch.version.hip is not None:
        return "this is a ROCm build of torch"
    return None


def record(
    run: Callable[[], Tensor], rewind: Callable[[], None], device: torch.device
) -> Recording:
    """Record ``run`` as a CUDA graph with memory of its own.

    ``run`` must have run before on the current stream, so that kernels are compiled and scratch
    memory is allocated there. It runs once more to warm up the stream that records, under
    :class:`WithoutHost`; ``rewind`` is called after that and takes its effects back.

    Raises:
        HostInvolvedError: ``run`` involves the host. Whatever torch raises for a failed recording;
        the device can be used as before then.
    """
    with _lock, torch.cuda.device(device):
        stream = _stream(device)
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                try:
                    with WithoutHost(device):
                        run()
                finally:
                    rewind()
        finally:
            torch.cuda.current_stream().wait_stream(stream)
        # what the caching allocator holds back cannot serve the graph's own pool
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream), _capturing(graph, device):
            output = run()
        return Recording(output, max(0, torch.cuda.memory_reserved() - before), graph)


@contextlib.contextmanager
def _capturing(graph: Any, device: torch.device) -> Iterator[None]:
    """Like ``torch.cuda.graph``, but the first error is the one that is raised, the stream that was
    current becomes current again, and torch is left able to allocate and record."""
    pool = torch.cuda.graph_pool_handle()
    marker = torch.zeros(1, device=device)
    # other threads may go on allocating and launching
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    try:
        yield
        graph.capture_end()
    except BaseException:
        with contextlib.suppress(Exception):
            graph.capture_end()
        # A forbidden call invalidates the recording, and capture_end then stops half-way: the
        # allocator still counts a recording and the default generator believes to be in one. The
        # former is said to be over, the latter learns it from a recording that succeeds.
        with contextlib.suppress(Exception):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
        with contextlib.suppress(Exception):
            spare = torch.cuda.CUDAGraph()
            spare.capture_begin(capture_error_mode="thread_local")
            marker.add_(1)
            spare.capture_end()
        raise


def _stream(device: torch.device) -> Any:
    """The recording stream of this thread: BLAS libraries keep scratch memory per stream."""
    name = f"device {torch.cuda.current_device()}"
    if not hasattr(_streams, name):
        setattr(_streams, name, torch.cuda.Stream(device))
    return getattr(_streams, name)
