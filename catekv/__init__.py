"""Head-wise compressed key-value caches for long-context language models.

Importing this package has no side effects: nothing is registered with transformers, no device is
touched, and submodules are loaded when one of the names below is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from catekv.version import __version__

if TYPE_CHECKING:
    from catekv import calibration, methods, tasks
    from catekv.cache.attention import register_attention
    from catekv.cache.cache import RaggedCache
    from catekv.decode.context import Context
    from catekv.methods.head_mask import HeadMask
    from catekv.model import CateKVModel

_HOME_OF = {
    "CateKVModel": "catekv.model",
    "Context": "catekv.decode.context",
    "HeadMask": "catekv.methods.head_mask",
    "RaggedCache": "catekv.cache.cache",
    "register_attention": "catekv.cache.attention",
}
_SUBMODULES = ("calibration", "methods", "tasks")

__all__ = [
    "CateKVModel",
    "Context",
    "HeadMask",
    "RaggedCache",
    "__version__",
    "calibration",
    "methods",
    "register_attention",
    "tasks",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(_HOME_OF[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"catekv.{name}")
    raise AttributeError(f"module 'catekv' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
