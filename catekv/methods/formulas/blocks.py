"""How much a step over many tokens holds at once."""

from __future__ import annotations

import torch


def block_floats(device: torch.device) -> int:
    """Numbers of float32: 1 MiB on a CPU, whose caches hold that from one operation to the next; 32
    MiB elsewhere, where every operation has to be launched."""
    return 1 << 18 if device.type == "cpu" else 1 << 23
