"""Pictures of measurements: step time and memory against length, and where a step goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from catekv.evaluation.efficiency.measurement import MEASURED, Measurement
from catekv.evaluation.figure_files import write_figure
from catekv.evaluation.report.styles import COLOURS
from catekv.prefill.sizes import GIB


def draw(path: Path, results: Sequence[Measurement], title: str) -> None:
    """A PNG with three panels, of the smallest batch size that was measured.

    Args:
        path: file to write.
        results: measured rows; others are left out.
    """
    from matplotlib.figure import Figure

    rows = [row for row in results if row.status == MEASURED and row.median_step is not None]
    batch = min((row.batch for row in rows), default=1)
    rows = [row for row in rows if row.batch == batch]
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    latency, memory, parts = figure.subplots(1, 3)
    for axis in (latency, memory, parts):
        axis.set_prop_cycle(color=COLOURS)
    for variant in dict.fromkeys(row.variant for row in rows):
        own = sorted((row for row in rows if row.variant == variant), key=lambda row: row.length)
        lengths = [row.length for row in own]
        style = {"marker": "o", "label": variant, "linestyle": "-" if own[0].method else "--"}
        latency.plot(lengths, [1000 * (row.median_step or 0.0) for row in own], **style)
        memory.plot(lengths, [row.stored_bytes / GIB for row in own], **style)
    latency.set(title="decode step", xlabel="context tokens", ylabel="ms")
    memory.set(title="cache", xlabel="context tokens", ylabel="GiB")
    for axis in (latency, memory):
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        if rows:
            axis.legend(fontsize="small")
    _draw_parts(parts, rows)
    figure.suptitle(f"{title}, batch size {batch}")
    write_figure(path, figure)


def _draw_parts(axis: Any, rows: Sequence[Measurement]) -> None:
    """Stacked bars of attention, the rest and what lies between, at the greatest length."""
    longest = max((row.length for row in rows), default=0)
    split = [row for row in rows if row.length == longest and row.attention_seconds is not None]
    names = [row.variant for row in split]
    attention = [1000 * (row.attention_seconds or 0.0) for row in split]
    rest = [1000 * (row.rest_seconds or 0.0) for row in split]
    whole = [1000 * (row.median_step or 0.0) for row in split]
    between = [max(0.0, w - a - r) for w, a, r in zip(whole, attention, rest, strict=True)]
    axis.barh(names, rest, label="without attention")
    axis.barh(names, attention, left=rest, label="attention alone")
    bottom = [a + r for a, r in zip(attention, rest, strict=True)]
    axis.barh(names, between, left=bottom, label="between")
    axis.set(title=f"a step at {longest} tokens", xlabel="ms")
    if split:
        axis.legend(fontsize="small")
