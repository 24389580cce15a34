"""Measurements in which nothing was compressed: their scores are those of the full cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from catekv.evaluation.records.record import Record
from catekv.evaluation.report.validity_section import is_check

#: Behind the name of a method that compressed nothing.
MARK = " (nothing compressed)"
_FULL = "full"


def untouched(records: Sequence[Record], method: Mapping[str, Any]) -> int:
    """How many records of a method, an entry of the manifest's, kept, read and stored everything.

    The full cache and the checks of the tasks are not meant to compress: 0.
    """
    if method["name"] == _FULL or is_check(method):
        return 0
    return sum(_kept_everything(record) for record in records if record.error is None)


def _kept_everything(record: Record) -> bool:
    stored, full = record.stored_bytes, record.full_bytes
    return (
        record.kept_share is not None
        and record.kept_share >= 1.0
        and (record.asked_share is None or record.asked_share >= 1.0)
        and (not stored or not full or stored >= full)
    )


def is_untouched(row: Mapping[str, Any]) -> bool:
    """Whether a method compressed nothing in all samples of a row of the summary."""
    return bool(row["count"]) and row["untouched"] == row["count"]


def column_name(row: Mapping[str, Any]) -> str:
    """The method of a row, marked where it compressed nothing."""
    return row["method"] + (MARK if is_untouched(row) else "")


def warnings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence about methods that compressed nothing in some or all samples of a table."""
    found = [row for row in rows if row["untouched"]]
    if not found:
        return []
    names = (
        row["method"]
        if is_untouched(row)
        else f"{row['method']} in {row['untouched']} of {row['count']} samples"
        for row in found
    )
    return [
        f"Nothing compressed: {', '.join(names)} kept the whole of these prompts, so the scores "
        "are those of the full cache and say nothing about the method; give longer prompts "
        "(--lengths) or a smaller budget."
    ]
