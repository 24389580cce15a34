"""How far two tensors are apart, and how far they may be."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.cases import Result

#: Relative error in the 2-norm that rounding explains, by the type of the inputs. Float32 products
#: in TF32 (3e-4) must not pass.
TOLERANCE = {torch.float32: 3e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """``|found - wanted| / |wanted|`` in float64; infinite where anything is not finite."""
    found, wanted = found.double(), wanted.double()
    if found.shape != wanted.shape or not bool(found.isfinite().all()):
        return float("inf")
    size = float(wanted.norm())
    difference = float((found - wanted).norm())
    return difference / size if size else difference


def checked(
    kernel: str,
    errors: dict[str, float],
    tolerance: float,
    dtype: torch.dtype | None = None,
    note: str = "",
) -> Result:
    """A line of the error table; wrong if an error is above the tolerance.

    Args:
        errors: backend or part -> relative error.
    """
    worst = max(errors.values())
    row = {
        "kernel": kernel,
        "type": "-" if dtype is None else str(dtype).removeprefix("torch."),
        "worst error": f"{worst:.1e}",
        "tolerance": f"{tolerance:.0e}" if tolerance else "0",
        "errors": ", ".join(f"{name} {error:.1e}" for name, error in errors.items()),
    }
    # not (worst <= tolerance): NaN does not pass
    return Result([row], wrong=not worst <= tolerance, note=note, data=errors)


def short_name(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
