"""What a triton module declares about the kernels it launches, so that they can be built anywhere.

A ``*_triton.py`` module has a function ``variants()`` that lists every compiled form it may launch;
:mod:`catekv.kernels.compile_check` builds them for real chips on a machine without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Variant:
    """One compiled form of one triton kernel.

    Attributes:
        name: e.g. ``ragged_decode bfloat16 d128``.
        function: the ``triton.jit`` function.
        signature: argument -> type (``*bf16``, ``*fp32``, ``*i32``, ``i32``, ``fp32`` ...) of every
            argument that is no constant.
        constants: ``tl.constexpr`` arguments (and arguments given as None) with their values.
        divisible: arguments (pointers, strides) known to be multiples of 16, as at a real launch.
        num_warps, num_stages: launch options.
        hot: runs in every decode step; must not spill registers.
        programs: how many the launch counts on sharing a multiprocessor.
    """

    name: str
    function: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    divisible: tuple[str, ...] = ()
    num_warps: int = 4
    num_stages: int = 2
    hot: bool = False
    programs: int = 1


def signature(
    function: Any, types: Mapping[str, str], constants: Mapping[str, Any]
) -> dict[str, str]:
    """Types of all arguments of a kernel that are no constants; ``i32`` where none is given."""
    names = function.arg_names
    return {name: types.get(name, "i32") for name in names if name not in constants}
