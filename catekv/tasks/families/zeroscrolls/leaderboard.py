"""The file that the ZeroSCROLLS leaderboard takes: columns Task, ID and Prediction."""

from __future__ import annotations

import os
from collections.abc import Iterable

from catekv.errors import UserError
from catekv.files import write_table
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
    write_table(path, COLUMNS, [(*key, text) for key, text in rows.items()])
    return tuple(name for name in NEW_TOKENS if name not in {task for task, _ in rows})
