"""Cache-compression methods, one file per published method; see :mod:`catekv.methods.base`."""

from __future__ import annotations

from catekv.methods import catekv, full, snapkv, streaming_llm  # noqa: F401 - they register
from catekv.methods.base import (
    Merged,
    Method,
    ModelShape,
    Needs,
    Observed,
    Selection,
    available,
    create,
    from_dict,
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
    "from_dict",
    "method_class",
    "register",
]
