"""Decode steps of a whole model on caches filled at random."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from bench.cases import Case, Result, Stage
from bench.workload import (
    catekv,
    failures,
    load_model,
    memory_goal,
    rows_of,
    speed_goal,
    tokens,
    uncaptured,
)
from catekv.evaluation.efficiency.measure import measure

NEW_TOKENS, REPEATS = 16, 2


def cases(stage: Stage) -> list[Case]:
    """The goals first, then short contexts, then the other full attentions."""

    def case(
        name: str,
        length: int,
        ratio: float,
        retention: float,
        bound: float | None,
        seconds: float,
        baselines: Sequence[str] = ("kernel", "sdpa"),
    ) -> Case:
        run = functools.partial(
            _measure, stage, name, length, ratio, retention, bound, tuple(baselines)
        )
        return Case(name, run, seconds)

    found = [
        Case("model", lambda: _build(stage), 30.0),
        case("512K r 0.4 eta 1", 512_000, 0.4, 1.0, 1.85, 15.0),
        case("512K r 0.3 eta 0.7", 512_000, 0.3, 0.7, 2.6, 12.0, ("kernel",)),
        case("1M r 0.4 eta 1", 1_000_000, 0.4, 1.0, None, 15.0, ("kernel",)),
        case("128K r 0.4 eta 1", 131_072, 0.4, 1.0, None, 10.0),
        case("32K r 0.4 eta 1", 32_768, 0.4, 1.0, 0.95, 8.0),
        case("16K r 0.4 eta 1", 16_384, 0.4, 1.0, 0.95, 8.0),
        case("8K r 0.4 eta 1", 8_192, 0.4, 1.0, 0.95, 8.0),
        case(
            "128K, other full attentions", 131_072, 0.4, 1.0, None, 12.0,
            ("kernel", "flash", "flashinfer", "dynamic"),
        ),
    ]  # fmt: skip
    return [*found[:3], found[-1]] if stage.tiny else found


def _build(stage: Stage) -> Result:
    model = load_model(stage)
    shape = model.shape
    note = (
        f"{shape.layers} layers, {shape.query_heads} query heads, {shape.kv_heads} KV heads of "
        f"{shape.head_dim}, {model.dtype}"
    )
    return Result(note=note)


def _measure(
    stage: Stage,
    name: str,
    length: int,
    ratio: float,
    retention: float,
    bound: float | None,
    baselines: tuple[str, ...],
) -> Result:
    rows = measure(
        load_model(stage),
        [catekv(stage, ratio, retention)],
        tokens(stage, length),
        new_tokens=2 if stage.tiny else NEW_TOKENS,
        repeats=REPEATS,
        baselines=baselines,
    )
    goals = [] if bound is None else speed_goal(name, rows, bound)
    goals += memory_goal(stage, name, rows)
    bad = failures(rows)
    note = "; ".join(text for text in (bad, uncaptured(stage, rows)) if text)
    data = [row.to_dict() for row in rows]
    return Result(rows_of(stage, rows), goals, wrong=bool(bad), note=note, data=data)
