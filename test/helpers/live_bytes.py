"""A meter of live tensor bytes: what is allocated at every moment of a computation, and the peak.

It watches every operation below autograd and follows the storages of the results by weak
reference. What an operation allocates and frees inside itself (the scratch of a sort, of a matrix
product) is not seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Live:
    """One storage: its bytes, and the operation and shape of the tensor that it came with."""

    bytes: int
    operation: Any
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.bytes:>12} {self.operation} {list(self.shape)}"


class LiveBytes(TorchDispatchMode):
    """Within it ``peak`` is the largest sum of bytes of storages that were made since the start.

    ``at_peak`` lists those storages, the largest first. Tensors that existed before do not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.at_peak: list[Live] = []
        self._live: dict[int, tuple[StorageWeakRef, Live]] = {}
        self._before: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        # an argument that no operation made was there before
        for item in tree_leaves((arguments, options)):
            if isinstance(item, Tensor):
                reference = StorageWeakRef(item.untyped_storage())
                if reference.cdata not in self._live:
                    self._before.setdefault(reference.cdata, reference)
        result = function(*arguments, **(options or {}))
        for item in tree_leaves(result):
            if isinstance(item, Tensor):
                storage = item.untyped_storage()
                reference = StorageWeakRef(storage)
                if reference.cdata not in self._live and reference.cdata not in self._before:
                    live = Live(storage.nbytes(), function, tuple(item.shape))
                    self._live[reference.cdata] = (reference, live)
        self._count()
        return result

    def _count(self) -> None:
        for key in [key for key, (reference, _) in self._live.items() if reference.expired()]:
            del self._live[key]
        total = self.now
        if total > self.peak:
            self.peak = total
            self.at_peak = sorted((live for _, live in self._live.values()), key=lambda x: -x.bytes)

    @property
    def now(self) -> int:
        """Bytes counted at the last operation."""
        return sum(live.bytes for _, live in self._live.values())
