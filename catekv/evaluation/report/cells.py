"""Numbers beyond a task's mean: grids of depths and lengths, groups of LongBench, turns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from catekv.evaluation.records.records import Record

NIAH = "niah"
LONGBENCH_E = "longbench_e/"
LONGBENCH_V2 = "longbench_v2"


def needle_cells(records: Iterable[Record], methods: Sequence[str]) -> list[dict[str, Any]]:
    """Mean score (0..1) per method, question mode, length and depth of the task ``niah``.

    The depth is the one that was asked for, in per cent, where the sample's metadata has it, else
    the place of the first answer. Failed samples are left out.
    """
    found: dict[tuple[str, str, str, int, float], list[float]] = {}
    for record in records:
        if record.task.partition("/")[0] != NIAH or record.official is None or record.error:
            continue
        depth = _depth(record)
        if depth is not None:
            key = (record.method, record.question, record.task, record.length, depth)
            found.setdefault(key, []).append(record.official)
    order = {label: position for position, label in enumerate(methods)}
    return [
        {
            "method": method,
            "question": question,
            "task": task,
            "length": length,
            "depth": depth,
            "score": round(sum(values) / len(values), 6),
            "count": len(values),
        }
        for (method, question, task, length, depth), values in sorted(
            found.items(), key=lambda item: (order.get(item[0][0], len(order)), *item[0])
        )
    ]


def _depth(record: Record) -> float | None:
    asked = record.metadata.get("depth")
    if isinstance(asked, int | float):
        return float(asked)
    return round(100 * record.depths[0], 1) if record.depths else None


def bucket_cells(records: Iterable[Record], methods: Sequence[str]) -> list[dict[str, Any]]:
    """Mean score x 100 per method, question mode, limit of length and bucket of the LongBench-E
    tasks.

    The bucket of a sample follows from its row's own field ``length``; a bucket's score is the
    mean over its tasks, as a published one is.
    """
    from catekv.tasks.metrics.longbench_tables import BUCKETS, bucket_scores

    found: dict[tuple[str, str, int], dict[str, list[tuple[float, int]]]] = {}
    for record in records:
        if not record.task.startswith(LONGBENCH_E) or record.official is None or record.error:
            continue
        length = record.metadata.get("length")
        if isinstance(length, int):
            tasks = found.setdefault((record.method, record.question, record.length), {})
            tasks.setdefault(record.task, []).append((record.official, length))
    order = {label: position for position, label in enumerate(methods)}
    cells = []
    for (method, question, limit), tasks in sorted(
        found.items(), key=lambda item: (order.get(item[0][0], len(order)), *item[0][1:])
    ):
        tables = {
            task: bucket_scores([score for score, _ in pairs], [length for _, length in pairs])
            for task, pairs in tasks.items()
        }
        for name in BUCKETS:
            parts = [table[name] for table in tables.values() if table[name].value is not None]
            values = [part.value for part in parts if part.value is not None]
            cells.append(
                {
                    "method": method,
                    "question": question,
                    "length": limit,
                    "bucket": name,
                    "score": round(sum(values) / len(values), 4) if values else None,
                    "tasks": len(values),
                    "count": sum(part.number for part in parts),
                }
            )
    return cells


def choice_cells(records: Iterable[Record], methods: Sequence[str]) -> list[dict[str, Any]]:
    """LongBench v2 in its published groups: per method, question mode and limit of length.

    A cell holds ``scores`` and ``counts`` per group and ``truncated``, the percentage of samples
    whose text was cut.
    """
    from catekv.tasks.metrics.longbench_v2 import Row, report

    found: dict[tuple[str, str, int], list[Row]] = {}
    for record in records:
        if record.task != LONGBENCH_V2 or record.official is None or record.error:
            continue
        notes = record.metadata
        row = Row(
            record.official,
            str(notes.get("difficulty")),
            str(notes.get("length")),
            bool(notes.get("truncated")),
        )
        found.setdefault((record.method, record.question, record.length), []).append(row)
    order = {label: position for position, label in enumerate(methods)}
    cells = []
    for method, question, length in sorted(
        found, key=lambda key: (order.get(key[0], len(order)), *key)
    ):
        result = report(found[method, question, length])
        place = {"method": method, "question": question, "length": length}
        cells.append(
            {
                **place,
                "scores": result.scores,
                "counts": result.counts,
                "truncated": result.truncated,
            }
        )
    return cells


def turn_cells(records: Iterable[Record], methods: Sequence[str]) -> list[dict[str, Any]]:
    """Mean score x 100 per method, question mode, task, length and turn of tasks that ask a context
    several times."""
    found: dict[tuple[str, str, str, int, int], list[float]] = {}
    for record in records:
        turn = record.metadata.get("turn")
        if isinstance(turn, int) and record.official is not None and not record.error:
            key = (record.method, record.question, record.task, record.length, turn)
            found.setdefault(key, []).append(record.official)
    order = {label: position for position, label in enumerate(methods)}
    names = ("method", "question", "task", "length", "turn")
    return [
        {
            **dict(zip(names, key, strict=True)),
            "score": round(100 * sum(values) / len(values), 4),
            "count": len(values),
        }
        for key, values in sorted(
            found.items(), key=lambda item: (order.get(item[0][0], len(order)), *item[0][1:])
        )
    ]


def grid_axes(cells: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[int]]:
    """All depths and all lengths of some needle cells, rising."""
    depths = sorted({float(cell["depth"]) for cell in cells})
    lengths = sorted({int(cell["length"]) for cell in cells})
    return depths, lengths
