"""Tokens per second with the largest batch of 40K-token samples that fits, for both sides."""

from __future__ import annotations

import functools

from bench.cases import Case, Result, Stage
from bench.workload import catekv, failures, load_model, rows_of, speed_goal, tokens, uncaptured
from catekv.evaluation.efficiency.throughput import throughput

LENGTH = 40_960
NEW_TOKENS = 12


def cases(stage: Stage) -> list[Case]:
    """The goal first, then the other published setting."""
    return [
        Case("r 0.3 eta 0.7", functools.partial(_measure, stage, 0.3, 0.7, 4.0), 40.0),
        Case("r 0.4 eta 1", functools.partial(_measure, stage, 0.4, 1.0, None), 20.0),
    ]


def _measure(stage: Stage, ratio: float, retention: float, bound: float | None) -> Result:
    rows = throughput(
        load_model(stage),
        [catekv(stage, ratio, retention)],
        tokens(stage, LENGTH),
        new_tokens=2 if stage.tiny else NEW_TOKENS,
        memory_limit=(80 << 20) if stage.tiny else None,
    )
    name = f"40K samples, r {ratio:g} eta {retention:g}"
    goals = [] if bound is None else speed_goal(name, rows, bound)
    bad = failures(rows)
    note = "; ".join(text for text in (bad, uncaptured(stage, rows)) if text)
    data = [row.to_dict() for row in rows]
    return Result(rows_of(stage, rows), goals, wrong=bool(bad), note=note, data=data)
