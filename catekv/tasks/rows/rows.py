"""Rows of JSON files, each with a word on where it stands."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from catekv.errors import UserError
from catekv.files import BYTE_ORDER_MARK, read_text

Result = TypeVar("Result")
#: half of a character that takes two codes; alone it is no text, and no tokenizer can write it
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


def read_rows(path: str | os.PathLike[str]) -> list[tuple[str, dict[str, Any]]]:
    """All rows of a JSONL file, of a JSON list, or of one object ``{"0": {...}, "1": {...}}``.

    Returns:
        (place, row) in file order; the place is e.g. ``line 3``.

    Raises:
        UserError: unreadable file, torn line, a row that is no JSON object or holds half a
            character, or no row at all.
    """
    file = Path(path)
    text = read_text(file)
    rows = _numbered(file, text)
    if not rows:
        raise UserError(f"{file} holds no row")
    for place, row in rows:
        if not isinstance(row, dict):
            raise UserError(f"{file}, {place}: expected a JSON object")
    if _HALF_CHARACTER.search(text):
        for place, row in rows:
            with naming(file, place):
                _whole_characters(row)
    return rows


def _whole_characters(row: Any) -> None:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        code = ascii(error.object[error.start])
        raise ValueError(f"half a character, {code}, which is no text; repair the row") from None


def _numbered(file: Path, text: str) -> list[tuple[str, Any]]:
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        whole = None  # rows line by line, whatever the name of the file
    if isinstance(whole, dict) and whole and all(key.isdecimal() for key in whole):
        return [(f"entry {key!r}", whole[key]) for key in sorted(whole, key=int)]
    if isinstance(whole, list):
        return [(f"entry {number}", row) for number, row in enumerate(whole)]
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        # files with a mark each that were put behind one another
        line = line.removeprefix(BYTE_ORDER_MARK)
        if not line.strip():
            continue
        try:
            rows.append((f"line {number}", json.loads(line)))
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise UserError(
                f"{file}, line {number}: not a complete JSON object ({reason}); the file may be "
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
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
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


def text_field(row: Mapping[str, Any], name: str) -> str:
    """A field that must hold a text.

    Raises:
        KeyError: it is missing.
        ValueError: it holds anything else.
    """
    value = row[name]
    if not isinstance(value, str):
        raise ValueError(f"field {name!r} is {shown(value)}, expected a text")
    return value


def count_field(
    row: Mapping[str, Any], name: str, default: int | None = None, *, least: int = 0
) -> int:
    """A field that holds a whole number of at least ``least``; ``default`` where it is missing.

    Raises:
        KeyError: it is missing and has no default.
        ValueError: it holds anything else.
    """
    value = row[name] if default is None else row.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"field {name!r} is {shown(value)}, expected a whole number from {least}")
    return value


def identity_field(row: Mapping[str, Any], name: str, default: int | None = None) -> str | int:
    """A field that tells a row from others, a text or a whole number; ``default`` where missing.

    Raises:
        KeyError: it is missing and has no default.
        ValueError: it holds anything else, or a blank text.
    """
    value = row[name] if default is None else row.get(name, default)
    if not isinstance(value, str | int) or isinstance(value, bool) or not str(value).strip():
        raise ValueError(f"field {name!r} is {shown(value)}, expected a text or a whole number")
    return value


def references_field(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A field with answers that are looked for in predictions: a text, or a list of them.

    Raises:
        KeyError: it is missing.
        ValueError: there is none, one is no text, or one is blank and so would be found in every
            prediction.
    """
    value = row[name]
    answers = [value] if isinstance(value, str) else value
    if not isinstance(answers, list) or not answers:
        raise ValueError(f"field {name!r} is {shown(value)}, expected at least one answer")
    for answer in answers:
        is_text = isinstance(answer, str | int) and not isinstance(answer, bool)
        if not is_text or not str(answer).strip():
            raise ValueError(f"field {name!r} holds the answer {shown(answer)}, which is no text")
    return tuple(map(str, answers))


def shown(value: object) -> str:
    """A value in a message: its beginning on one line."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."
