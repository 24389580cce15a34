"""The file that the ZeroSCROLLS leaderboard takes: columns Task, ID and Prediction."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from pathlib import Path

from catekv.errors import UserError
from catekv.tasks.core.parts import OFFICIAL
from catekv.tasks.core.sample import Sample
from catekv.tasks.families.zeroscrolls.rows import NEW_TOKENS, PREFIX

COLUMNS = ("Task", "ID", "Prediction")


def write(path: str | os.PathLike[str], answers: Iterable[tuple[Sample, str]]) -> tuple[str, ...]:
    """Write (sample, prediction) pairs of official rows as CSV.

    Returns:
        The tasks of ZeroSCROLLS without a row; the leaderboard wants all ten.

    Raises:
        UserError: a sample that is not of an official ZeroSCROLLS row, two predictions for one
            row, or a place that cannot be written.
    """
    rows: dict[tuple[str, str], str] = {}
    for sample, prediction in answers:
        name, identity = sample.task.removeprefix(PREFIX), sample.metadata.get("id")
        if not sample.task.startswith(PREFIX) or sample.wording != OFFICIAL or not identity:
            raise UserError(
                f"{sample.task}, sample {sample.index}, is not of an official ZeroSCROLLS row; "
                "read the samples with tasks.read from the downloaded files"
            )
        if (name, identity) in rows:
            raise UserError(f"{sample.task}: the row {identity!r} has two predictions; give one")
        rows[name, identity] = prediction.strip()
    file = Path(path)
    try:
        with file.open("w", encoding="utf-8", newline="") as stream:
            table = csv.writer(stream)
            table.writerow(COLUMNS)
            table.writerows((*key, text) for key, text in rows.items())
    except OSError as error:
        raise UserError(f"cannot write {file}: {error}") from error
    return tuple(name for name in NEW_TOKENS if name not in {task for task, _ in rows})
