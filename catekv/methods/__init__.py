"""Cache-compression methods, one file per published method; see :mod:`catekv.methods.base`."""

from __future__ import annotations

from catekv.methods import (  # noqa: F401 - they register
    adakv,
    atskv,
    atskv_baselines,
    cam,
    catekv,
    cokv,
    duo_attention,
    dynamickv,
    full,
    h2o,
    headkv,
    keepkv,
    pyramidinfer,
    pyramidkv,
    quest,
    rocketkv,
    shadowkv,
    simcalkv,
    simcalkv_baselines,
    sliding_window,
    snapkv,
    streaming_llm,
)
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
