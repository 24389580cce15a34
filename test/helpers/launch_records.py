"""What triton kernels were launched with, and whether a device would take it.

The interpreter runs what no device does: options that it does not know it drops, pointers to the
host it follows, a grid may have any size. A launch is checked against what a device takes, and
against the forms that the kernel's module says it launches, which are built for real chips.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from catekv.kernels.compile_check import modules

#: Programs along the three axes of a grid.
GRID = (2**31 - 1, 65535, 65535)
#: Threads of a program.
THREADS = 1024
OPTIONS = {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": True}
NAMES = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int64: "i64",
    torch.int32: "i32", torch.uint8: "u8", torch.int8: "i8", torch.bool: "i1",
}  # fmt: skip


class LaunchError(AssertionError):
    """A launch that a device refuses, or that nobody builds."""


@dataclass(frozen=True)
class Launch:
    """One launch.

    Attributes:
        kernel: the function's name. function: it. grid: programs along each axis.
        arguments: by name; constants by :attr:`constants`, which also names what was given as None.
        options: of the launch, warps and stages.
    """

    kernel: str
    function: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    options: dict[str, Any]

    def types(self) -> dict[str, str]:
        """Of pointers, as :class:`catekv.kernels.variant.Variant` writes them."""
        given = self.arguments.items()
        return {name: f"*{NAMES[x.dtype]}" for name, x in given if isinstance(x, Tensor)}

    def check(self, on_device: Callable[[Tensor], bool]) -> None:
        """Raise :class:`LaunchError` for what a device does not take."""
        for place, (size, most) in enumerate(zip(self.grid, GRID, strict=False)):
            if not 0 < size <= most:
                raise LaunchError(f"{self.kernel}: {size} programs along axis {place} of the grid")
        threads = 32 * self.options.get("num_warps", OPTIONS["num_warps"])
        if threads > THREADS or threads & (threads - 1):
            raise LaunchError(f"{self.kernel}: {threads} threads in a program")
        if unknown := set(self.options) - set(OPTIONS):
            raise LaunchError(f"{self.kernel} has no argument {' or '.join(sorted(unknown))}")
        for name, value in self.arguments.items():
            if isinstance(value, Tensor) and not on_device(value):
                raise LaunchError(f"{self.kernel}: {name} lies in the memory of the host")
            if not isinstance(value, (Tensor, int, float)):
                raise LaunchError(f"{self.kernel}: {name} is a {type(value).__name__}")
        for name, value in self.constants.items():
            if not isinstance(value, (bool, int, float, str, type(None))):
                raise LaunchError(f"{self.kernel}: the constant {name} is no plain value")
        known = _known_types().get(self.kernel, {})
        for name, kind in self.types().items():
            if kind not in known.get(name, ()):
                raise LaunchError(f"{self.kernel}: no variant that is built has {kind} {name}")


def launch_of(executor: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Launch:
    """The launch that an executor of the interpreter was called for."""
    known = set(executor.arg_names)
    given = inspect.getcallargs(
        executor.fn, *arguments, **{name: x for name, x in options.items() if name in known}
    )
    constants = {
        name: value for name, value in given.items() if name in executor.constexprs or value is None
    }
    grid = executor.grid(given) if callable(executor.grid) else executor.grid
    return Launch(
        executor.fn.__name__,
        executor.fn,
        tuple(grid),
        {name: value for name, value in given.items() if name not in constants},
        constants,
        {name: value for name, value in options.items() if name not in known},
    )


@functools.cache
def _known_types() -> dict[str, dict[str, set[str]]]:
    """kernel -> argument -> types of the pointers of all forms that are built."""
    found: dict[str, dict[str, set[str]]] = {}
    for module in modules():
        for form in importlib.import_module(module).variants():
            arguments = found.setdefault(form.function.__name__, {})
            for name, kind in form.signature.items():
                arguments.setdefault(name, set()).add(kind)
    return found
