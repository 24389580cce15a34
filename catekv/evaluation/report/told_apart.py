"""Which methods the samples can tell from full attention, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from catekv.evaluation import tables
from catekv.evaluation.report.statistics import LARGE, Told, told
from catekv.evaluation.report.untouched import is_untouched

Row = Mapping[str, Any]


def verdict(row: Row) -> Told | None:
    """What the interval of a row's paired difference says; None without one over all
    samples, and where nothing was compressed."""
    difference = row["difference"]
    if difference is None or row["unpaired"] or is_untouched(row):
        return None
    return told(difference["low"], difference["high"], 100 * LARGE)


def sentences(rows: Sequence[Row], full: str | None) -> Iterator[str]:
    """Which methods lie where, those with least memory first; nothing without full attention."""
    found: dict[Told, list[Row]] = {}
    for row in sorted(rows, key=lambda one: memory_share(one) or 0.0):
        if (said := verdict(row)) is not None:
            found.setdefault(said, []).append(row)
    if full is None or not found:
        return
    count = next(iter(found.values()))[0]["count"]
    alike, unknown = found.get("alike", []), found.get("unknown", [])
    if alike:
        yield (
            f"Not told apart from {full} by these {count} samples (the interval of the paired "
            f"difference holds 0 and ends within {100 * LARGE:g} points), least memory first: "
            f"{_names(alike)}."
        )
    if unknown:
        yield (
            f"Too few samples to tell from {full} (the interval holds 0 and reaches beyond "
            f"{100 * LARGE:g} points): {_names(unknown)}."
        )
    for said, where in (("below", "Below"), ("above", "Above")):
        if said in found:
            yield f"{where} {full}: {_names(found[said])}."


def memory_share(row: Row) -> float | None:
    """Bytes stored over those of the full cache."""
    stored, whole = row["stored_bytes"], row["full_bytes"]
    return stored / whole if stored is not None and whole else None


def _names(rows: Sequence[Row]) -> str:
    return ", ".join(map(_with_memory, rows))


def _with_memory(row: Row) -> str:
    share = memory_share(row)
    size = "" if share is None else f" ({tables.percent(share)} of the cache)"
    return f"{row['method']}{size}"
