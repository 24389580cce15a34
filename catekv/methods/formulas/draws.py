"""Random numbers that depend on what they are for and on nothing else.

A draw is a function of the seed, the layer, the head and the position of a token: the same in any
batch, on any device, in copies of a cache and however the tokens were fed.
"""

from __future__ import annotations

import torch
from torch import Tensor

# constants of the splitmix64 generator, as signed 64-bit integers
_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)


def _mix(state: Tensor) -> Tensor:
    """One step of splitmix64 on int64 (arithmetic wraps around)."""
    state = state + _STEP
    state = (state ^ _shift(state, 30)) * _FIRST
    state = (state ^ _shift(state, 27)) * _SECOND
    return state ^ _shift(state, 31)


def _shift(value: Tensor, bits: int) -> Tensor:
    # torch shifts signed integers and copies the sign bit
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def uniform_numbers(seed: int, layer: int, head: Tensor, position: Tensor) -> Tensor:
    """Numbers in [0, 1): float32, of the shape to which ``head`` and ``position`` (int64)
    broadcast."""
    start = torch.full_like(position, seed)
    state = _mix(_mix(_mix(start) ^ layer) ^ head)
    return (_shift(_mix(state ^ position), 40)).float() / (1 << 24)
