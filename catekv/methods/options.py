"""Options that must be numbers: what else is given becomes one line, not a traceback."""

from __future__ import annotations

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
