"""Tensors in host memory, and streams that copy beside the computation."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor


def to_host(parts: Sequence[Tensor]) -> Tensor:
    """Copies of tensors [rows, dim], behind each other in host memory; pinned where they come from
    a CUDA device."""
    rows = sum(map(len, parts))
    # a normal tensor even within inference mode: it outlives it
    with torch.inference_mode(False), torch.no_grad():
        copy = torch.empty(
            rows, *parts[0].shape[1:], dtype=parts[0].dtype, pin_memory=parts[0].is_cuda
        )
        start = 0
        for part in parts:
            copy[start : start + len(part)] = part
            start += len(part)
    return copy


@functools.cache
def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of a CUDA device on which stores copy from the host."""
    return torch.cuda.Stream(device)
