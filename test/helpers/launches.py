"""Kernels that a computation launches, counted on a CPU.

Every operation of torch that is no view and no allocation is a launch on a GPU; of this project's
kernels, which run in triton's interpreter, every grid is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

#: Operations that launch nothing although their result is no view.
ALLOCATIONS = ("aten::empty", "aten::new_empty", "aten::empty_like", "aten::empty_strided",
               "aten::_unsafe_view", "aten::detach", "aten::lift_fresh")  # fmt: skip


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.inside = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        given = func._schema.returns
        view = any(one.alias_info is not None and not one.alias_info.is_write for one in given)
        if not (self.inside or view or name in ALLOCATIONS):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """The launches of what runs within it, by the names of operations and kernels."""
    from triton.runtime.interpreter import GridExecutor

    counter = _Counter()
    run = GridExecutor.__call__

    def launch(self: Any, *arguments: Any, **options: Any) -> Any:
        counter.found[self.fn.__name__] += 1
        # what the interpreter itself computes with torch is no launch
        counter.inside = True
        try:
            return run(self, *arguments, **options)
        finally:
            counter.inside = False

    with monkeypatch.context() as patched, counter:
        patched.setattr(GridExecutor, "__call__", launch)
        yield counter.found
