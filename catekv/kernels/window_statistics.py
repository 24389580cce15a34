"""Order statistics and hit counts of the observation window: the definition and torch path."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from catekv.kernels.logits import PLAIN, LogitForm
from catekv.kernels.window_scores import chunk_maximum, window_attention


def order_statistics(values: Tensor, positions: Sequence[int]) -> Tensor:
    """Values [rows, len(positions)] that sorting each row of ``values`` in ascending order puts at
    ``positions``; exact for any number of values."""
    if values.device.type == "cpu":
        # Partial selection; torch's own (kthvalue, topk) takes 7 to 15 times as long on the CPU.
        rows = np.partition(values.numpy(), positions, axis=-1)
        return torch.from_numpy(rows[:, positions])
    return torch.stack([row.sort().values[list(positions)] for row in values])


def count_hits(attention: Tensor, limits: Tensor, units: Sequence[int]) -> list[Tensor]:
    """How many queries reach a limit, for several limits.

    Args:
        attention: fp32 [rows, window, tokens].
        limits: fp32 [rows, limits], the least value that is a hit.
        units: tokens per unit of each limit; the largest value of a unit counts.

    Returns:
        Per limit int64 [rows, ceil(tokens / unit)].
    """
    values = {
        unit: attention if unit == 1 else chunk_maximum(attention, unit) for unit in set(units)
    }
    return [
        (values[unit] >= limits[:, index, None, None]).sum(dim=-2)
        for index, unit in enumerate(units)
    ]


def window_statistics_torch(
    queries: Tensor,
    keys: Tensor,
    scaling: float,
    start: int,
    stop: int,
    positions: Sequence[int],
    limits: Callable[[Tensor], Tensor],
    units: Sequence[int],
    form: LogitForm = PLAIN,
) -> tuple[Tensor, list[Tensor]]:
    """Arguments as in :func:`catekv.kernels.window_statistics`."""
    lead = keys.shape[:2]
    found = []
    counted: list[list[Tensor]] = []
    for _, attention in window_attention(queries, keys, scaling, start, stop, form=form):
        statistics = order_statistics(attention.flatten(1), positions)
        found.append(statistics)
        counted.append(count_hits(attention, limits(statistics), units))
    hits = [torch.cat(rows).unflatten(0, lead) for rows in zip(*counted, strict=True)]
    return torch.cat(found).unflatten(0, lead), hits
