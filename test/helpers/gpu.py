"""What the tests under ``test/gpu`` run on, and how far two results may be apart."""

from __future__ import annotations

import os

import torch
from torch import Tensor

#: ``cpu``: the tests run on a CPU, kernels in triton's interpreter, with small shapes. ``pretend``:
#: so does a device that says it is CUDA (:mod:`pretend_cuda`).
VARIABLE = "CATEKV_GPU_TESTS"
PRETENDED = os.environ.get(VARIABLE) == "pretend"
TINY = PRETENDED or os.environ.get(VARIABLE) == "cpu"
DEVICE = "cpu" if TINY and not PRETENDED else "cuda"
#: Without a device that says it is one, triton's kernels must be asked for.
MUST_ASK = DEVICE == "cpu"
#: bfloat16 arithmetic is wrong in the interpreter.
HALVES = (torch.float16,) if TINY else (torch.bfloat16, torch.float16)
TYPES = (*HALVES, torch.float32)
#: Relative error in the 2-norm that rounding explains, by the type of the inputs. Float32 products
#: in TF32 (3e-4) must not pass.
TOLERANCE = {torch.float32: 3e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def available() -> bool:
    """Whether there is something to run on."""
    return TINY or torch.cuda.is_available()


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """``|found - wanted| / |wanted|`` in float64; infinite where anything is not finite."""
    found, wanted = found.detach().double().cpu(), wanted.detach().double().cpu()
    if found.shape != wanted.shape or not bool(found.isfinite().all()):
        return float("inf")
    size = float(wanted.norm())
    difference = float((found - wanted).norm())
    return difference / size if size else difference


def short_name(value: object) -> str | None:
    """Names of types and forms in test names; None leaves it to pytest."""
    if isinstance(value, torch.dtype):
        return {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[value]
    return getattr(value, "name", None)
