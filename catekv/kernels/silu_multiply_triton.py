"""``silu(gate) * up`` of one product's output in one launch."""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from catekv.kernels.variant import Variant, signature

#: Numbers of one program: few, so that one token is spread over many multiprocessors.
BLOCK = 256


@triton.jit
def _silu_multiply(gate_up, output, width, BLOCK: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(gate_up + 2 * row * width + column, mask=inside, other=0.0)
    up = tl.load(gate_up + (2 * row + 1) * width + column, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    # rounded in between, as the model stores the activation before it multiplies
    activated = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    product = activated.to(tl.float32) * up.to(tl.float32)
    tl.store(output + row * width + column, product.to(gate.dtype), mask=inside)


def silu_multiply_triton(gate_up: Tensor) -> Tensor:
    """Argument and result as in :func:`catekv.kernels.silu_multiply`."""
    width = gate_up.shape[-1] // 2
    output = gate_up.new_empty(*gate_up.shape[:-1], width)
    grid = (triton.cdiv(width, BLOCK), output.numel() // width)
    _silu_multiply[grid](gate_up, output, width, BLOCK=BLOCK, num_warps=2)
    return output


def variants() -> list[Variant]:
    """Every compiled form."""
    return [
        Variant(
            name=f"silu_multiply {dtype}",
            function=_silu_multiply,
            signature=signature(
                _silu_multiply,
                {"gate_up": f"*{dtype}", "output": f"*{dtype}"},
                {"BLOCK": BLOCK},
            ),
            constants={"BLOCK": BLOCK},
            divisible=("gate_up", "output", "width"),
            num_warps=2,
            hot=True,
        )
        for dtype in ("bf16", "fp16", "fp32")
    ]
