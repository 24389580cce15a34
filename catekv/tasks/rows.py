"""Rows of JSON files, each with a word on where it stands."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from catekv.errors import UserError

Result = TypeVar("Result")


def read_rows(path: str | os.PathLike[str]) -> list[tuple[str, dict[str, Any]]]:
    """All rows of a JSONL file, of a JSON list, or of one object ``{"0": {...}, "1": {...}}``.

    Returns:
        (place, row) in file order; the place is e.g. ``line 3``.

    Raises:
        UserError: unreadable file, torn line, a row that is no JSON object, or no row at all.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}") from error
    rows = _numbered(file, text)
    if not rows:
        raise UserError(f"{file} holds no row")
    for place, row in rows:
        if not isinstance(row, dict):
            raise UserError(f"{file}, {place}: expected a JSON object")
    return rows


def _numbered(file: Path, text: str) -> list[tuple[str, Any]]:
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:
        whole = None  # rows line by line, whatever the name of the file
    if isinstance(whole, dict) and whole and all(key.isdecimal() for key in whole):
        return [(f"entry {key!r}", whole[key]) for key in sorted(whole, key=int)]
    if isinstance(whole, list):
        return [(f"entry {number}", row) for number, row in enumerate(whole)]
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append((f"line {number}", json.loads(line)))
        except json.JSONDecodeError as error:
            raise UserError(
                f"{file}, line {number}: not a complete JSON object ({error.msg}); the file may be "
                "torn, build or download it again"
            ) from None
    return rows


@contextmanager
def naming(file: object, place: str) -> Iterator[None]:
    """Errors about a row's fields, raised inside, name the file and the place.

    A missing field, a wrong type and a ``ValueError`` become ``UserError``.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{file}, {place}: {reason}") from None


def parse_rows(
    path: str | os.PathLike[str], parse: Callable[[int, dict[str, Any]], Result]
) -> list[Result]:
    """``parse(position, row)`` of every row; what it cannot use is named with file and place."""
    results = []
    for position, (place, row) in enumerate(read_rows(path)):
        with naming(path, place):
            results.append(parse(position, row))
    return results
