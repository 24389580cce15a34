"""Which KV heads a process of a tensor-parallel group holds, and what the others hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from catekv.errors import UserError

_apart: ContextVar[bool] = ContextVar("apart", default=False)


@contextmanager
def models_apart() -> Iterator[None]:
    """Within it every process of the running group has a whole model of its own."""
    token = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(token)


def group_position() -> tuple[int, int]:
    """(rank, processes) of the processes that share a model; (0, 1) without a process group."""
    if _apart.get():
        return 0, 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def is_sharded(local: int, total: int) -> bool:
    """Whether a layer of this process holds only part of the model's KV heads. (Some
    configurations give a number that their model does not use; alone, that means nothing.)"""
    return local != total and group_position()[1] > 1


def local_heads(local: int, total: int, rank: int | None = None, world: int | None = None) -> slice:
    """The KV heads of this process, as a slice of the model's.

    Column-wise sharded projections give rank ``r`` of ``n`` the contiguous heads
    ``[r * total / n, (r + 1) * total / n)``; architectures that gather them hold all heads
    everywhere.

    Args:
        local: KV heads of the tensors here. total: KV heads of the model.
        rank, world: position in the group; default: the running process group's.

    Raises:
        UserError: if the heads are neither replicated nor split evenly.
    """
    if local == total:
        return slice(0, total)
    if rank is None or world is None:
        rank, world = group_position()
    if local * world != total:
        raise UserError(
            f"a layer holds {local} KV heads where the model has {total} and {world} processes "
            "run; per-head budgets need the heads replicated or split evenly"
        )
    return slice(rank * local, (rank + 1) * local)


def all_heads(tensor: Tensor, dim: int = 1) -> Tensor:
    """The parts of all processes of a tensor that is split by heads, in the model's order.

    All processes must call this, with tensors of the same shape; the result is the same on all.
    Query heads may be gathered like KV heads: a process holds the query heads of its KV heads.
    """
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format)
             for _ in range(group_position()[1])]  # fmt: skip
    torch.distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts, dim=dim)


def is_tensor_parallel(model: torch.nn.Module) -> bool:
    """Whether a loaded transformers model is shared with other processes."""
    return (getattr(model, "_tp_size", None) or 1) > 1
