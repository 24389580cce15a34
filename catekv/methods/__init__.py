"""Cache-compression methods, one file per published method; see :mod:`catekv.methods.base`."""

from __future__ import annotations

from catekv.methods.base import (
    Merged,
    Method,
    ModelShape,
    Needs,
    Observed,
    Selection,
    available,
    create,
    method_class,
    register,
)

__all__ = [
    "Merged",
    "Method",
    "ModelShape",
    "Needs",
    "Observed",
    "Selection",
    "available",
    "create",
    "method_class",
    "register",
]
