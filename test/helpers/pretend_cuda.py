"""A CUDA device that is not there: tensors say that they lie on it, and compute on the CPU.

Within :func:`pretend_cuda` what runs on CUDA devices only runs anywhere, with real numbers:

- what is made on ``cuda`` or computed from it says so, whatever a view or a module makes of it;
- operands on two devices are refused as torch refuses them, and so are tensors of the host that a
  kernel is given, or a tensor of the device that is read as an array;
- streams and events do nothing, because everything happens in order;
- a graph records operations and launches with the operands they had, and repeats just these. What
  waits for the host is refused meanwhile;
- triton kernels run in the interpreter; every launch is noted and checked
  (:mod:`launch_records`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from launch_records import Launch, launch_of
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
#: Multiprocessors: few, so that a launch of the interpreter is short.
PROCESSORS = 1
MEMORY = 80 << 30

_READS = frozenset({"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "nonzero"})
#: What takes tensors of two devices: copies, and what only looks at its operands.
_MIXES = frozenset({"copy_", "set_", "__set__", "_has_compatible_shallow_copy_type", "is_set_to"})
_INDEXES = frozenset({"__getitem__", "__setitem__", "index_put_", "index_put"})
_PINNED = "cannot pin a tensor of the device: only dense CPU tensors can be pinned"


class Recorder:
    """What is recorded at the moment, if anything is."""

    def __init__(self) -> None:
        self.tape: list[tuple[Callable[[], Any], Any]] | None = None

    def forbid(self, what: str) -> None:
        if self.tape is not None:
            raise RuntimeError(f"{what} is not permitted when a stream is being recorded")

    def note(self, again: Callable[[], Any], result: Any) -> None:
        if self.tape is not None:
            self.tape.append((again, result))


class _Tensors(TorchFunctionMode):
    """Which tensors are said to lie on the device: those whose storage is marked."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        # the references keep the numbers of storages from being given anew
        self.marked: dict[int, StorageWeakRef] = {}

    def is_here(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self.marked

    def mark(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self.marked[storage._cdata] = StorageWeakRef(storage)

    def storages(self) -> list[torch.UntypedStorage]:
        """What is on the device and still alive."""
        found = []
        for key, reference in list(self.marked.items()):
            storage = torch.UntypedStorage._new_with_weak_ptr(reference.cdata)
            if storage is None:
                del self.marked[key]
            else:
                found.append(storage)
        return found

    def allocated(self) -> int:
        """Bytes of that."""
        return sum(storage.nbytes() for storage in self.storages())

    def place(self, tensor: Tensor) -> torch.device:
        return CUDA if self.is_here(tensor) else tensor.device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        getter = _GETTERS.get(func)
        if getter is not None:
            return getter(self, args[0])
        name = getattr(func, "__name__", "")
        if name == "_parse_to":  # what a module asks first when it is moved
            return func(*args, **kwargs)
        given = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        here = [self.is_here(tensor) for tensor in given]
        if any(here):
            self._refuse(name, args, given, here)
        if name in ("to", "cuda", "cpu"):
            return self._moved(name, args, kwargs)
        if name in ("pin_memory", "is_pinned"):
            if any(here):
                raise RuntimeError(_PINNED)
            return args[0].clone() if name == "pin_memory" else False
        target = _device(kwargs.get("device"))
        if kwargs.pop("pin_memory", False) and target is not None and target.type == "cuda":
            raise RuntimeError(_PINNED)
        if target is not None and target.type == "cuda":
            kwargs["device"] = CPU
        if kwargs.get("out_dtype") is not None:
            func, kwargs = _widened(func, kwargs)
        before = {tensor.untyped_storage()._cdata for tensor in given}
        result = func(*args, **kwargs)
        on_device = any(here) if target is None else target.type == "cuda"
        made = [x for x in pytree.tree_leaves(result) if isinstance(x, Tensor)]
        if on_device:
            for tensor in made:
                if tensor.untyped_storage()._cdata not in before:
                    self.mark(tensor)
        if made and name != "__get__":
            self.recorder.note(lambda: func(*args, **kwargs), result)
        elif name in ("__setitem__", "__set__"):
            self.recorder.note(lambda: func(*args, **kwargs), None)
        return result

    def _refuse(self, name: str, args: Any, given: list[Tensor], here: list[bool]) -> None:
        """What a device does not do."""
        if name in _READS:
            self.recorder.forbid(f"reading a value ({name})")
        if name in ("numpy", "__array__"):
            raise TypeError("can't convert a cuda:0 tensor to numpy; copy it to the host first")
        if name in _INDEXES:
            indices = [x for x in pytree.tree_leaves(args[1:2]) if isinstance(x, Tensor)]
            if not here[0] and name == "__setitem__" and not indices:
                self.recorder.forbid("a copy to the host")
                return
            if not here[0]:
                raise RuntimeError(f"{name}: indices or values on cuda:0, and the tensor is not")
            if any(x.dtype in (torch.bool, torch.uint8) for x in indices) and name != "__setitem__":
                self.recorder.forbid("an index of booleans")
            values = args[2] if len(args) > 2 else None
            foreign = isinstance(values, Tensor) and values.dim() and not self.is_here(values)
            if foreign and indices:
                raise RuntimeError(f"{name}: values on the host, and the tensor is on cuda:0")
            return
        if name in _MIXES:
            return
        # a bias that is made where it is used lies nowhere
        placed = [(x, inside) for x, inside in zip(given, here, strict=True) if _has_place(x)]
        if any(tensor.dim() and not inside for tensor, inside in placed):
            where = ", ".join("cuda:0" if inside else "cpu" for inside in here)
            raise RuntimeError(
                f"{name}: expected all tensors to be on the same device, not {where}"
            )

    def _moved(self, name: str, args: Any, kwargs: Any) -> Tensor:
        tensor, *rest = args
        target = {"cuda": CUDA, "cpu": CPU}.get(name) or _device(kwargs.pop("device", None))
        for value in rest if name == "to" else ():
            if isinstance(value, Tensor):
                target, kwargs["dtype"] = self.place(value), value.dtype
            elif isinstance(value, torch.dtype):
                kwargs["dtype"] = value
            elif isinstance(value, (str, torch.device, int)) and not isinstance(value, bool):
                target = _device(value)
        kwargs = {key: kwargs[key] for key in ("dtype", "copy") if kwargs.get(key) is not None}
        if target is not None and target.type not in ("cpu", "cuda"):
            return tensor.to(target, **kwargs)
        before = self.place(tensor)
        target = target or before
        if before.type == "cuda" != target.type:
            self.recorder.forbid("a copy to the host")

        def run() -> Tensor:
            copied = tensor.to(**kwargs) if kwargs else tensor
            shared = copied.untyped_storage()._cdata == tensor.untyped_storage()._cdata
            return copied.clone() if shared and target.type != before.type else copied

        result = run()
        if target.type == "cuda":
            self.mark(result)
        if result is not tensor:
            self.recorder.note(run, result)
        return result


def _has_place(tensor: Tensor) -> bool:
    return type(tensor).__name__ != "CausalBias"


def _widened(func: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A product with another type of result: the CPU has none."""
    kind = options.pop("out_dtype")

    def run(left: Tensor, right: Tensor) -> Tensor:
        assert left.dtype == right.dtype in (torch.float16, torch.bfloat16), "torch widens halves"
        return func(left.to(kind), right.to(kind))

    return run, options


def _device(given: Any) -> torch.device | None:
    if given is None or isinstance(given, torch.device):
        return given
    return torch.device("cuda", given) if isinstance(given, int) else torch.device(given)


_GETTERS: dict[Any, Callable[[_Tensors, Tensor], Any]] = {
    Tensor.device.__get__: _Tensors.place,
    Tensor.is_cuda.__get__: _Tensors.is_here,
    Tensor.is_cpu.__get__: lambda mode, tensor: not mode.is_here(tensor),
    Tensor.get_device: lambda mode, tensor: 0 if mode.is_here(tensor) else -1,
}


class Stream:
    """Stands where a stream or an event would: what is enqueued has happened."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_stream(self, other: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def record(self, stream: Any = None) -> None: ...

    def elapsed_time(self, other: Any) -> float:
        return 1.0


class Runtime:
    """What the code under test finds in ``torch.cuda``."""

    def __init__(self, tensors: _Tensors, recorder: Recorder) -> None:
        self.tensors, self.recorder = tensors, recorder
        self.replays = 0

    def synchronize(self, device: Any = None) -> None:
        self.recorder.forbid("waiting for the device")

    def graph(self) -> Any:
        runtime = self

        class Event(Stream):
            def synchronize(self) -> None:
                runtime.synchronize()

        class Graph:
            tape: list[tuple[Callable[[], Any], Any]]
            before: list[tuple[torch.UntypedStorage, torch.UntypedStorage]]

            def capture_begin(self, **_: Any) -> None:
                self.tape = runtime.recorder.tape = []
                self.before = [(held, held.clone()) for held in runtime.tensors.storages()]

            def capture_end(self) -> None:
                runtime.recorder.tape = None
                # what is recorded has not run
                for held, content in self.before:
                    held.copy_(content)
                self.before = []

            def replay(self) -> None:
                runtime.replays += 1
                with torch._C.DisableTorchFunction():
                    for again, result in self.tape:
                        _repeat(again, result)

        return Event, Graph

    def install(self, patch: pytest.MonkeyPatch) -> None:
        event, graph = self.graph()
        properties = SimpleNamespace(
            name="NVIDIA H100 80GB HBM3", total_memory=MEMORY, multi_processor_count=PROCESSORS,
            major=9, minor=0, L2_cache_size=50 << 20,
        )  # fmt: skip

        def free(device: Any = None) -> tuple[int, int]:
            return MEMORY - self.tensors.allocated(), MEMORY

        def allocated(device: Any = None) -> int:
            return self.tensors.allocated()

        stand_ins: dict[str, Any] = {
            "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
            "set_device": lambda device: None, "device": lambda device: contextlib.nullcontext(),
            "stream": lambda stream: contextlib.nullcontext(), "Stream": Stream, "Event": event,
            "current_stream": Stream, "CUDAGraph": graph, "graph_pool_handle": lambda: (0, 1),
            "synchronize": self.synchronize, "empty_cache": lambda: None,
            "memory_allocated": allocated, "max_memory_allocated": allocated,
            "memory_reserved": allocated, "reset_peak_memory_stats": lambda device=None: None,
            "mem_get_info": free, "get_device_properties": lambda device=None: properties,
            "get_device_name": lambda device=None: properties.name,
            "get_device_capability": lambda device=None: (9, 0),
            "get_rng_state": lambda device=None: torch.zeros(1, dtype=torch.uint8),
            "set_rng_state": lambda state, device=None: None,
        }  # fmt: skip
        for name, value in stand_ins.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch, "Generator", _generator_class())
        patch.setattr(Tensor, "record_stream", lambda tensor, stream: None)
        patch.setattr("catekv.decode.graph._streams", SimpleNamespace())
        # below the tensors' own account of where they are, everything is on the CPU
        where = property(lambda mode: CPU, lambda mode, value: None)
        patch.setattr("catekv.decode.graph.WithoutHost.device", where, raising=False)


def _generator_class() -> type:
    made = torch.Generator

    class Generator:
        """One of the CPU, whatever the device."""

        def __new__(cls, device: Any = "cpu") -> torch.Generator:  # type: ignore[misc]
            return made()

    return Generator


def _repeat(again: Callable[[], Any], result: Any) -> None:
    """Run an operation again, its result where the first one lies."""
    old = [x for x in pytree.tree_leaves(result) if isinstance(x, Tensor)]
    new = [x for x in pytree.tree_leaves(again()) if isinstance(x, Tensor)]
    for place, value in zip(old, new, strict=bool(old)):
        if place.data_ptr() != value.data_ptr():
            place.copy_(value)


class Pretended:
    """The device of a test.

    Attributes:
        launches: of triton kernels, in order, those of replays not.
        runtime: its ``replays`` are counted.
    """

    def __init__(self, tensors: _Tensors, runtime: Runtime) -> None:
        self.tensors, self.runtime = tensors, runtime
        self.launches: list[Launch] = []

    def kernels(self) -> set[str]:
        return {launch.kernel for launch in self.launches}


@contextlib.contextmanager
def pretend_cuda() -> Iterator[Pretended]:
    """There is a CUDA device ``cuda:0`` within it; on a machine with a real one it is hidden."""
    from triton.runtime.interpreter import GridExecutor

    recorder = Recorder()
    tensors = _Tensors(recorder)
    found = Pretended(tensors, Runtime(tensors, recorder))
    run = GridExecutor.__call__

    def launch(executor: Any, *arguments: Any, **options: Any) -> None:
        with torch._C.DisableTorchFunction():
            noted = launch_of(executor, arguments, options)
            found.launches.append(noted)
            noted.check(tensors.is_here)
            run(executor, *arguments, **options)
        recorder.note(lambda: run(executor, *arguments, **options), None)

    with pytest.MonkeyPatch.context() as patch:
        found.runtime.install(patch)
        patch.setattr(GridExecutor, "__call__", launch)
        with tensors:
            yield found
