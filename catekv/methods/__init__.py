"""Cache-compression methods, one file per published method; see :mod:`catekv.methods.base`."""

from __future__ import annotations

from catekv.kernels.ragged import Merged
from catekv.methods import (  # noqa: F401 - they register
    adakv,
    cam,
    catekv,
    cokv,
    duo_attention,
    dynamickv,
    full,
    h2o,
    headkv,
    keepkv,
    keydiff,
    knorm,
    pyramidinfer,
    pyramidkv,
    quest,
    rocketkv,
    shadowkv,
    sliding_window,
    snapkv,
    streaming_llm,
)
from catekv.methods.atskv import baselines as _atskv_baselines  # noqa: F401
from catekv.methods.atskv import method as _atskv  # noqa: F401
from catekv.methods.base import Method, Needs, Observed, Selection
from catekv.methods.registry import available, create, from_dict, method_class, register
from catekv.methods.selection import MergedSelection
from catekv.methods.simcalkv import baselines as _simcalkv_baselines  # noqa: F401
from catekv.methods.simcalkv import method as _simcalkv  # noqa: F401
from catekv.models.shape import ModelShape

__all__ = [
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
    "register",
]
