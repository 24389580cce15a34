"""Checks of values in a grid: each returns what is wrong with one, or None."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from catekv.evaluation.options import MOST_TOKENS


def whole(least: int, most: int = MOST_TOKENS) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            return f"give a whole number from {least} to {most}"
        return None

    return check


def share(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        return "give a share from 0 to 1"
    return None


def share_above_none(value: Any) -> str | None:
    if share(value) is not None or value == 0:
        return "give a share above 0, at most 1"
    return None


def truth(value: Any) -> str | None:
    return None if isinstance(value, bool) else "give true or false"


def word(value: Any) -> str | None:
    return None if isinstance(value, str) and value else "give a text"


def words(value: Any) -> str | None:
    given = isinstance(value, list | tuple) and all(word(item) is None for item in value)
    return None if given else "give a list of texts"


def options(value: Any) -> str | None:
    named = isinstance(value, dict) and all(isinstance(key, str) for key in value)
    return None if named else "give names and values, as in {num_hops: 2}"


def one_of(choices: tuple[str, ...]) -> Callable[[Any], str | None]:
    return lambda value: None if value in choices else f"use {', '.join(choices)}"
