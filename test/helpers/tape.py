"""CUDA graphs imitated on a CPU: the operations of one run, repeated on the same tensors.

Like a graph, a tape knows nothing of the Python code that was recorded: what the host decided then
is decided for good, and only what tensors hold can differ between two replays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from catekv.decode import graph


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result


class Tape:
    """What stands where a CUDA graph would: replayed by :class:`catekv.decode.graph.Recording`."""

    def __init__(self, calls: list[tuple[Any, Any, Any, Any]]):
        self.calls = calls
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for new, old in zip(tree_flatten(again)[0], tree_flatten(result)[0], strict=True):
                # a view, or a tensor changed in place, has its memory already
                if isinstance(new, Tensor) and new.data_ptr() != old.data_ptr():
                    old.copy_(new)


def record(
    run: Callable[[], Tensor], rewind: Callable[[], None], device: torch.device
) -> graph.Recording:
    """In place of :func:`.graph.record`: warm up without the host, record, run nothing."""
    with graph.WithoutHost(device):
        run()
    rewind()
    recorder = _Recorder()
    with recorder:
        output = run()
    rewind()
    return graph.Recording(output, 4096, Tape(recorder.calls))


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps on the CPU are recorded on tapes."""
    monkeypatch.setattr(graph, "why_not", lambda device: None)
    monkeypatch.setattr(graph, "record", record)
