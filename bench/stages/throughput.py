"""Tokens per second with the largest batch of 40K-token samples that fits, for both sides."""

from __future__ import annotations

from bench.cases import Result, Scale
from bench.workload import (
    TINY_MEMORY,
    catekv,
    load_model,
    notes,
    ours_failed,
    rows_of,
    speed_ups,
    tokens,
)
from catekv.evaluation.efficiency.throughput import throughput

LENGTH = 40_960
NEW_TOKENS = 12


def run(scale: Scale, name: str, ratio: float, retention: float) -> Result:
    """Every full attention and CateKV at its own largest batch."""
    rows = throughput(
        load_model(scale),
        [catekv(scale, ratio, retention)],
        tokens(scale, LENGTH),
        new_tokens=2 if scale.tiny else NEW_TOKENS,
        baselines=("kernel", "flex"),
        memory_limit=TINY_MEMORY if scale.tiny else None,
    )
    values = speed_ups(rows, f"40K batches r {ratio:g} eta {retention:g}")
    data = [row.to_dict() for row in rows]
    return Result(
        rows_of(scale, rows), values, wrong=ours_failed(rows), note=notes(scale, rows), data=data
    )
