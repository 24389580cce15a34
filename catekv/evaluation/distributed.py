"""Data-parallel evaluation under ``torchrun``: who am I, and the few moments ranks must meet.

Rank i of n measures the samples i, i + n, i + 2n ... of every task, on a device of its own. Ranks
exchange no tensors, so the ``gloo`` backend serves CPU and GPU alike.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from catekv.errors import UserError

#: Ranks may differ by hours at the end of a run; the default of 30 minutes would end it.
_PATIENCE = datetime.timedelta(days=7)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Process:
    """This process among those that ``torchrun`` started; alone without it."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share_of(self, count: int) -> range:
        """Indices of the samples that this process measures."""
        return range(self.rank, count, self.world)

    def device(self, device: str) -> str:
        """``cuda`` and ``auto`` become this process's own GPU when there are several processes."""
        if self.world == 1 or device not in ("cuda", "auto"):
            return device
        import torch

        count = torch.cuda.device_count()
        if device == "auto" and not count:
            return device
        if self.local_rank >= count:
            raise UserError(
                f"process {self.local_rank} finds only {count} CUDA devices; start torchrun with "
                f"--nproc_per_node {max(count, 1)} or use --device cpu"
            )
        return f"cuda:{self.local_rank}"

    def barrier(self) -> None:
        """Wait for the other processes."""
        if self.world > 1:
            import torch.distributed

            torch.distributed.barrier()

    def first_decides(self, action: Callable[[], Result]) -> Result | None:
        """Run ``action`` on the first process; its ``UserError`` is raised on all of them.

        The first gets the result, the others None.
        """
        if self.world == 1:
            return action()
        import torch.distributed

        result: Result | None = None
        failure: list[str | None] = [None]
        if self.is_first:
            try:
                result = action()
            except UserError as error:
                failure = [str(error)]
        torch.distributed.broadcast_object_list(failure, src=0)
        if failure[0] is not None:
            raise UserError(failure[0])
        return result

    def total(self, value: int) -> int:
        """Sum of ``value`` over all processes."""
        if self.world == 1:
            return value
        import torch
        import torch.distributed

        number = torch.tensor([value])
        torch.distributed.all_reduce(number)
        return int(number)


@contextmanager
def process_group() -> Iterator[Process]:
    """The processes that ``torchrun`` started, connected while the context lasts."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world <= 1:
        yield Process()
        return
    import torch.distributed

    torch.distributed.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield Process(
            torch.distributed.get_rank(),
            torch.distributed.get_world_size(),
            int(os.environ.get("LOCAL_RANK", "0")),
        )
    finally:
        torch.distributed.destroy_process_group()
