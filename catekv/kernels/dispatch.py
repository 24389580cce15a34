"""Which implementation of a kernel runs: one table, one environment variable.

Implementations are named by module and loaded when they are first used, so that importing catekv
needs neither triton nor a device.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch

from catekv.errors import UserError

#: ``auto`` (triton where it runs, else torch), or the name of a backend to force.
VARIABLE = "CATEKV_KERNELS"

#: kernel -> backend -> module with a function ``<kernel>_<backend>`` of the same arguments.
#: ``reference`` is the definition; a kernel whose torch path is the definition has no other.
TABLE: dict[str, dict[str, str]] = {
    "ragged_decode": {
        "reference": "catekv.kernels.ragged_decode",
        "torch": "catekv.kernels.ragged_decode",
        "triton": "catekv.kernels.ragged_decode_triton",
    },
    "append": {
        "torch": "catekv.kernels.append",
        "triton": "catekv.kernels.append_triton",
    },
    "pack": {
        "torch": "catekv.kernels.pack",
        "triton": "catekv.kernels.pack_triton",
    },
    "window_scores": {
        "torch": "catekv.kernels.window_scores",
        "triton": "catekv.kernels.window_scores_triton",
    },
    "window_statistics": {
        "torch": "catekv.kernels.window_statistics",
        "triton": "catekv.kernels.window_statistics_triton",
    },
    "page_bounds": {
        "torch": "catekv.kernels.page_bounds",
        "triton": "catekv.kernels.page_bounds_triton",
    },
    "page_scores": {
        "torch": "catekv.kernels.page_bounds",
        "triton": "catekv.kernels.page_bounds_triton",
    },
    "copy": {
        "torch": "catekv.kernels.copy",
        "triton": "catekv.kernels.copy_triton",
    },
    "column_sums": {"torch": "catekv.kernels.column_sums"},
}


def backends(kernel: str = "ragged_decode") -> list[str]:
    """Names that the ``backend`` argument of a kernel accepts besides ``auto``."""
    return sorted(TABLE[kernel])


@functools.cache
def has_triton() -> bool:
    """Whether triton is installed (nothing is imported)."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _load(kernel: str, backend: str) -> Callable[..., Any]:
    module = importlib.import_module(TABLE[kernel][backend])
    function: Callable[..., Any] = getattr(module, f"{kernel}_{backend}")
    return function


def choose(
    kernel: str, device: torch.device, backend: str = "auto", *, unsupported: str | None = None
) -> Callable[..., Any]:
    """The function that computes ``kernel`` for tensors on ``device``.

    Args:
        kernel: a name in :data:`TABLE`.
        device: where the tensors are.
        backend: ``auto`` or a name in the kernel's row of the table; the environment variable
            :data:`VARIABLE` takes the place of ``auto``.
        unsupported: why the triton kernel cannot take these arguments, None if it can. ``auto``
            then uses torch; a forced ``triton`` is refused with this reason.

    Raises:
        UserError: unknown backend, or triton where it cannot run.
    """
    row = TABLE[kernel]
    if backend == "auto":
        backend = os.environ.get(VARIABLE, "auto").strip().lower() or "auto"
    if backend == "auto":
        usable = "triton" in row and device.type == "cuda" and has_triton()
        if not usable or unsupported is not None:
            return _load(kernel, "torch")
        return _launching(kernel, device)
    known = {name for entry in TABLE.values() for name in entry}
    if backend not in known:
        raise UserError(
            f"unknown kernel backend {backend!r} (argument backend or environment variable "
            f"{VARIABLE}); use auto, {', '.join(sorted(known))}"
        )
    if backend == "triton":
        reason = _why_no_triton(kernel, device) or unsupported
        if reason is not None:
            raise UserError(f"the triton kernel {kernel} cannot run here: {reason}; use auto")
        if "triton" in row:
            return _launching(kernel, device)
    return _load(kernel, backend if backend in row else "torch")


@functools.cache
def _launching(kernel: str, device: torch.device) -> Callable[..., Any]:
    """The triton kernel, launched on the device of its tensors: triton itself launches on the
    current one, which is another where a model's layers are spread over devices."""
    function = _load(kernel, "triton")
    if device.type != "cuda":
        return function

    def launch(*arguments: Any, **options: Any) -> Any:
        with torch.cuda.device(device):
            return function(*arguments, **options)

    return launch


def _why_no_triton(kernel: str, device: torch.device) -> str | None:
    if "triton" not in TABLE[kernel]:
        return None
    if not has_triton():
        return "triton is not installed (pip install 'catekv[gpu]')"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the tensors are on {device}, and TRITON_INTERPRET=1 is not set"
    return None
