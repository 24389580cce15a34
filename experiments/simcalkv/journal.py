"""The rows of a run until its own files are written: a run that was cut short goes on with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from catekv.evaluation.records.journal import Form, Journal


class Measured(NamedTuple):
    """What was measured on a row, by its position; ``value`` as JSON has it."""

    row: int
    value: Any


Rows = Journal[Measured]
_FORM: Form[Measured] = Form(
    "row",
    lambda found: Measured(int(found["row"]), found["value"]),
    Measured._asdict,
    lambda measured: measured.row,
)


def unfinished(folder: Path, name: str, recipe: Mapping[str, Any]) -> Rows:
    """The journal of a command.

    The file's name holds a digest of what is measured, so that only the same command goes on with
    it and no other one can overwrite it. Nothing is created before the first row.

    Args:
        folder: where the results go.
        name: first part of the file's name.
        recipe: everything that decides the numbers, as JSON.
    """
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True, default=str).encode())
    path = folder / f"{name}.unfinished-{digest.hexdigest()[:12]}.jsonl"
    return Journal(path, _FORM, lazily=True)
