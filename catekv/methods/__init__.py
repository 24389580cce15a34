"""Cache-compression methods, one file per published method; see :mod:`catekv.methods.base`.

Every module of this folder is imported with it, and registers the methods it has: a method is there
because its file is.
"""

from __future__ import annotations

import importlib
import pkgutil

from catekv.kernels.ragged import Merged
from catekv.methods.base import Method, Needs, Observed, Selection
from catekv.methods.budgeted import Budgeted
from catekv.methods.example import Example, MemoryFormula
from catekv.methods.formulas.scoring import top_mask
from catekv.methods.options import method_option
from catekv.methods.registry import available, create, from_dict, method_class, register
from catekv.methods.selection import MergedSelection
from catekv.models.shape import ModelShape

__all__ = [
    "Budgeted",
    "Example",
    "MemoryFormula",
    "Merged",
    "MergedSelection",
    "Method",
    "ModelShape",
    "Needs",
    "Observed",
    "Selection",
    "available",
    "create",
    "from_dict",
    "method_class",
    "method_option",
    "register",
    "top_mask",
]

for _module in pkgutil.walk_packages(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
