"""Scratch memory that lives as long as a cache, so that a decode step allocates nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Workspace:
    """Named scratch tensors that grow by doubling and are handed out again and again.

    What is in them is undefined at every call. One workspace serves all layers of a cache, which
    run one after another; caches that run at the same time need one each, so a copy starts empty.
    A captured CUDA graph must keep the tensors it was captured with alive: :meth:`tensors`.
    """

    def __init__(self) -> None:
        self._tensors: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def take(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """A contiguous tensor of this shape with undefined contents."""
        size = 1
        for extent in shape:
            size *= extent
        held = self._tensors.get((name, device, dtype))
        if held is None or held.numel() < size:
            room = size if held is None else max(size, 2 * held.numel())
            held = torch.empty(room, dtype=dtype, device=device)
            self._tensors[name, device, dtype] = held
        return held[:size].view(shape)

    def tensors(self) -> list[Tensor]:
        return list(self._tensors.values())

    def __deepcopy__(self, memo: dict[int, Any]) -> Workspace:
        return Workspace()
