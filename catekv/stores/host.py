"""Tensors in host memory, and streams that copy beside the computation."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def to_host(tensor: Tensor) -> Tensor:
    """A copy in host memory, pinned where the tensor comes from a CUDA device."""
    pinned = tensor.is_cuda
    # a normal tensor even within inference mode: it outlives it
    with torch.inference_mode(False), torch.no_grad():
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
        return copy.copy_(tensor)


@functools.cache
def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of a CUDA device on which stores copy from the host."""
    return torch.cuda.Stream(device)
