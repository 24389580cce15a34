"""Decode steps of a whole model on caches filled at random."""

from __future__ import annotations

from bench.cases import Result, Scale
from bench.workload import (
    catekv,
    load_model,
    memory_values,
    notes,
    of_ideal,
    ours_failed,
    rest_values,
    rows_of,
    speed_ups,
    tokens,
)
from catekv.evaluation.efficiency.measure import measure

NEW_TOKENS, REPEATS = 16, 2


def run(
    scale: Scale,
    name: str,
    tokens_full: int,
    ratio: float,
    retention: float,
    baselines: tuple[str, ...],
    store: str,
) -> Result:
    """Full attentions and CateKV at one length, the step taken apart."""
    rows = measure(
        load_model(scale),
        [catekv(scale, ratio, retention, store)],
        tokens(scale, tokens_full),
        new_tokens=2 if scale.tiny else NEW_TOKENS,
        repeats=REPEATS,
        baselines=baselines,
        share_layers=True,
    )
    values = {
        **speed_ups(rows, name),
        **of_ideal(rows, name),
        **memory_values(scale, rows, name),
        **rest_values(scale, rows),
    }
    data = [row.to_dict() for row in rows]
    return Result(
        rows_of(scale, rows), values, wrong=ours_failed(rows), note=notes(scale, rows), data=data
    )
