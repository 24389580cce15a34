"""Options of the wrong kind: what is given becomes one line, not a traceback or an odd result."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

from catekv.errors import UserError


def check_number(name: str, option: str, value: Any) -> None:
    """Raise ``UserError`` unless an option is a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{name}: {option} {value!r} is not a number")


def check_whole(name: str, option: str, value: Any, least: int = 0) -> None:
    """Raise ``UserError`` unless an option is a whole number, at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{name}: {option} {value!r} is not a whole number")
    if value < least:
        what = f"must be at least {least}" if least else "is negative"
        raise UserError(f"{name}: {option} {value} {what}")


def check_kinds(name: str, cls: type, options: Mapping[str, Any]) -> None:
    """Raise ``UserError`` if an option is of another kind than the field of a dataclass says.

    Looks at fields that are declared as one of ``bool``, ``int``, ``float`` and ``str``, or None as
    well; those of several kinds are the class's own business.
    """
    for item in fields(cls):
        kind, _, optional = str(item.type).partition(" | ")
        if item.name not in options or kind not in _KINDS or optional not in ("", "None"):
            continue
        value = options[item.name]
        if not (_is_of(kind, value) or (optional and value is None)):
            raise UserError(f"{name}: {item.name} {value!r:.60} is not {_KINDS[kind]}")


_KINDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
}


def _is_of(kind: str, value: Any) -> bool:
    if kind == "str":
        return isinstance(value, str | os.PathLike)
    if isinstance(value, bool) or kind == "bool":
        return kind == "bool" and isinstance(value, bool)
    if kind == "int":
        return isinstance(value, Integral)
    return isinstance(value, Real) and math.isfinite(value)
