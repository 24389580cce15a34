"""The sentence that a report opens with: does compression hurt, and do the samples suffice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from catekv.evaluation.report.statistics import LARGE, Told
from catekv.evaluation.report.told_apart import memory_share, verdict
from catekv.evaluation.report.untouched import is_untouched
from catekv.evaluation.report.validity_section import is_check

Row = Mapping[str, Any]
#: What an interval of the difference to full means for a user.
MEANING: dict[Told, str] = {
    "below": "hurts",
    "above": "helps",
    "alike": f"does not hurt by more than {100 * LARGE:g} points",
    "unknown": "too few samples to tell",
}


def opening(rows: Sequence[Row], methods: Mapping[str, Any], full: str | None) -> str | None:
    """One sentence about the first method of a table and about the one that loses least.

    Args:
        rows: the averages of one length and question mode. methods: of the summary.
        full: label of full attention.

    None where there is no difference to full attention to speak of.
    """
    compared = [
        row
        for row in rows
        if row["method"] != full
        and not is_check(methods[row["method"]])
        and (verdict(row) is not None or is_untouched(row))
    ]
    if full is None or not compared:
        return None
    first, *others = compared
    if is_untouched(first):
        return f"{first['method']} compressed nothing of these prompts, which says nothing of it."
    parts = [f"{_at(first)}: {MEANING[verdict(first) or 'unknown']}"]
    other = max(
        (row for row in others if not is_untouched(row)),
        key=lambda row: row["difference"]["mean"],
        default=None,
    )
    if other is not None and other["difference"]["mean"] > first["difference"]["mean"]:
        parts.append(f"{other['method']} loses less ({_points(other)})")
    return "; ".join(parts) + "."


def _at(row: Row) -> str:
    share = memory_share(row)
    size = row["method"] if share is None else f"At {100 * share:.0f} % memory {row['method']}"
    mean = row["difference"]["mean"]
    what = f"{'loses' if mean <= 0 else 'gains'} {abs(mean):.1f} points"
    low, high = row["difference"]["low"], row["difference"]["high"]
    tasks = f"{row['tasks']} tasks" if row["tasks"] > 1 else "one task"
    return f"{size} {what} on {tasks} [{low:.0f}, {high:.0f}], {row['count']} samples"


def _points(row: Row) -> str:
    difference = row["difference"]
    return f"{difference['mean']:+.1f} [{difference['low']:.0f}, {difference['high']:.0f}]"
