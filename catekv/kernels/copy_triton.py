"""A copy that reads and writes 16 bytes per thread at once."""

# mypy: allow-untyped-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from catekv.kernels.variant import Variant, signature

#: 4-byte words of one program; a thread has four vectors of four words in flight.
BLOCK = 4096


@triton.jit
def _copy(destination, source, words, BLOCK: tl.constexpr):
    word = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = word < words
    tl.store(destination + word, tl.load(source + word, mask=inside), mask=inside)


def copy_triton(destination: Tensor, source: Tensor) -> None:
    """Arguments as in :func:`catekv.kernels.copy`."""
    target, origin = (t.view(-1).view(torch.int32) for t in (destination, source))
    words = origin.numel()
    if words:
        _copy[(triton.cdiv(words, BLOCK),)](target, origin, words, BLOCK=BLOCK, num_warps=8)


def variants() -> list[Variant]:
    """The one compiled form for all types, with a size of 32 and of 64 bits."""
    found = []
    for words in ("i32", "i64"):
        types = {"destination": "*i32", "source": "*i32", "words": words}
        constants = {"BLOCK": BLOCK}
        found.append(
            Variant(
                name=f"copy (bf16, fp16, fp32) {words}",
                function=_copy,
                signature=signature(_copy, types, constants),
                constants=constants,
                divisible=tuple(types),
                num_warps=8,
                hot=True,
            )
        )
    return found
