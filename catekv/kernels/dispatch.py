"""Which implementation of a kernel runs: one table made from names, one environment variable.

Implementations are named by module and loaded when they are first used, so that importing catekv
needs neither triton nor a device.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from catekv.errors import UserError

#: ``auto`` (triton where it runs, else torch), or the name of a backend to force.
VARIABLE = "CATEKV_KERNELS"

_FUNCTION = re.compile(r"^(?:def )?(\w+)_(reference|torch|triton)(?=\(| = )", re.MULTILINE)


@functools.cache
def table() -> dict[str, dict[str, str]]:
    """kernel -> backend -> module with a function ``<kernel>_<backend>`` of the same arguments.

    It follows from names: a file ``x.py`` of this folder that defines ``k_torch``, or says which
    function it is, has a kernel ``k``, whose triton form is ``k_triton`` in ``x_triton.py``, if
    there is one. ``reference`` is the definition; a kernel whose torch path is the definition has
    no other. The files are read and not imported: a triton file can be imported only where triton
    is.
    """
    found: dict[str, dict[str, str]] = {}
    files = [
        path for place in sys.modules[__package__].__path__ for path in Path(place).glob("*.py")
    ]
    for path in sorted(files, key=lambda path: path.name):
        for kernel, backend in _FUNCTION.findall(path.read_text(encoding="utf-8")):
            if (backend == "triton") == path.stem.endswith("_triton"):
                found.setdefault(kernel, {})[backend] = f"{__package__}.{path.stem}"
    # what only a triton file names is a part of some kernel
    return {kernel: row for kernel, row in found.items() if "torch" in row}


def backends(kernel: str = "ragged_decode") -> list[str]:
    """Names that the ``backend`` argument of a kernel accepts besides ``auto``."""
    return sorted(table()[kernel])


@functools.cache
def has_triton() -> bool:
    """Whether triton is installed (nothing is imported)."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _load(kernel: str, backend: str) -> Callable[..., Any]:
    module = importlib.import_module(table()[kernel][backend])
    function: Callable[..., Any] = getattr(module, f"{kernel}_{backend}")
    return function


def choose(
    kernel: str, device: torch.device, backend: str = "auto", *, unsupported: str | None = None
) -> Callable[..., Any]:
    """The function that computes ``kernel`` for tensors on ``device``.

    Args:
        kernel: a name in :func:`table`.
        device: where the tensors are.
        backend: ``auto`` or a name in the kernel's row of the table; the environment variable
            :data:`VARIABLE` takes the place of ``auto``.
        unsupported: why the triton kernel cannot take these arguments, None if it can. ``auto``
            then uses torch; a forced ``triton`` is refused with this reason.

    Raises:
        UserError: unknown backend, or triton where it cannot run.
    """
    row = table()[kernel]
    if backend == "auto":
        backend = os.environ.get(VARIABLE, "auto").strip().lower() or "auto"
    if backend == "auto":
        usable = "triton" in row and device.type == "cuda" and has_triton()
        if not usable or unsupported is not None:
            return _load(kernel, "torch")
        return _launching(kernel, device)
    known = {name for entry in table().values() for name in entry}
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

    @functools.wraps(function)
    def launch(*arguments: Any, **options: Any) -> Any:
        with torch.cuda.device(device):
            return function(*arguments, **options)

    return launch


def _why_no_triton(kernel: str, device: torch.device) -> str | None:
    if "triton" not in table()[kernel]:
        return None
    if not has_triton():
        return "triton is not installed (pip install 'catekv[gpu]')"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the tensors are on {device}, and TRITON_INTERPRET=1 is not set"
    return None
