"""Tensors whose offsets leave 32 bits, at the cost of the pages that are written to."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def far_apart(tensor: Tensor, axis: int) -> Tensor:
    """The same numbers, the last of an axis more than 2^31 elements behind the first.

    Memory that nobody touches is only promised. What lies between is zero, and not to be read.
    """
    size = tensor.shape[axis]
    assert size > 2, "the stride alone would leave 32 bits, and be passed in 64"
    # whole lines, so that what is aligned stays so
    step = (1 << 31) // (size - 1) // 64 * 64 + 64
    shape = [1 if place == axis else extent for place, extent in enumerate(tensor.shape)]
    strides = [math.prod(shape[place + 1 :]) for place in range(tensor.dim())]
    assert math.prod(shape) <= step, "entries of the axis would overlap"
    strides[axis] = step
    room = torch.empty(step * (size - 1) + math.prod(shape), dtype=tensor.dtype)
    far = room.as_strided(tensor.shape, strides)
    far.copy_(tensor)
    assert far.stride(axis) * (size - 1) >= 1 << 31
    return far


def far_behind(entries: Tensor, first: int, gap: int) -> Tensor:
    """Entries with ``gap`` entries of nothing before the one at ``first``."""
    far = entries.new_empty(len(entries) + gap, *entries.shape[1:])
    far[:first], far[first + gap :] = entries[:first], entries[first:]
    return far
