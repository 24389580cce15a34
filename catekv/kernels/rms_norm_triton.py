"""Residual addition and RMSNorm in one launch: one program for each token."""

# mypy: allow-untyped-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from catekv.kernels.variant import Variant, signature

#: Widest row that a warp's threads hold without running out of registers.
WIDTH_PER_WARP = 1024


@triton.jit
def _rms_norm(
    states, residual, weight, summed, normed, epsilon,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * WIDTH
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    x = tl.load(states + row + column, mask=inside, other=0.0)
    if ADD:
        before = tl.load(residual + row + column, mask=inside, other=0.0)
        # the sum is rounded as the model stores it, and the statistics are those of what is stored
        x = (before.to(tl.float32) + x.to(tl.float32)).to(x.dtype)
        tl.store(summed + row + column, x, mask=inside)
    wide = x.to(tl.float32)
    variance = tl.sum(wide * wide, axis=0) / WIDTH
    rounded = (wide * tl.rsqrt(variance + epsilon)).to(x.dtype)
    factor = tl.load(weight + column, mask=inside, other=0.0)
    product = factor.to(tl.float32) * rounded.to(tl.float32)
    tl.store(normed + row + column, product.to(x.dtype), mask=inside)


def _warps(width: int) -> int:
    return max(1, min(16, triton.next_power_of_2(width) // WIDTH_PER_WARP * 2))


def rms_norm_triton(
    states: Tensor, weight: Tensor, epsilon: float, residual: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Arguments and result as in :func:`catekv.kernels.rms_norm`."""
    width = states.shape[-1]
    normed = torch.empty_like(states)
    summed = states if residual is None else torch.empty_like(states)
    _rms_norm[(states.numel() // width,)](
        states, states if residual is None else residual, weight, summed, normed, epsilon,
        WIDTH=width, BLOCK=triton.next_power_of_2(width), ADD=residual is not None,
        num_warps=_warps(width),
    )  # fmt: skip
    return summed, normed


def variants() -> list[Variant]:
    """Every compiled form, for some widths of models."""
    pointers = ("states", "residual", "weight", "summed", "normed")
    found = []
    for dtype in ("bf16", "fp16", "fp32"):
        for width in (2048, 4096, 8192, 16384):
            for add in (False, True):
                constants = {
                    "WIDTH": width,
                    "BLOCK": triton.next_power_of_2(width),
                    "ADD": add,
                }
                types = {**dict.fromkeys(pointers, f"*{dtype}"), "epsilon": "fp32"}
                found.append(
                    Variant(
                        name=f"rms_norm {'add ' if add else ''}{dtype} width {width}",
                        function=_rms_norm,
                        signature=signature(_rms_norm, types, constants),
                        constants=constants,
                        divisible=pointers,
                        num_warps=_warps(width),
                        hot=True,
                    )
                )
    return found
