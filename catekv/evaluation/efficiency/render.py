"""Measurements as tables, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from catekv.evaluation import tables
from catekv.evaluation.efficiency.measurement import (
    MEASURED,
    Measurement,
    share_of_ideal,
    speed_up,
)
from catekv.evaluation.efficiency.variants import KERNEL
from catekv.prefill.sizes import GB, GIB

NOTES = (
    "ms/step: median of decode steps of one token for every sequence (quartiles beside it), on the "
    "device's clock where it has one. kept: share of the full cache that is stored. cache, full: "
    "GiB of keys and values. resident: GiB that the allocator holds, weights and cache (GPU only). "
    "GB/step: weights and cache that a step must read. of copy: GB/step over ms/step, over the "
    "bandwidth of the copy. vs ours: against full attention by our kernel in the same table. "
    "vs best: against the fastest full attention in it. ideal: what bytes alone would give. "
    "of ideal: how much of that 'vs ours' is. captured: whether the step ran from a CUDA graph."
)
_COLUMNS = [
    "variant", "kept", "cache GiB", "full GiB", "resident GiB", "ms/step", "quartiles", "tokens/s",
    "GB/step", "GB/s", "of copy", "vs ours", "vs best", "ideal", "of ideal", "captured",
]  # fmt: skip
_PREFILL = ["variant", "prefill s", "compress s", "first token s", "prefill peak GiB"]
_PARTS = ["variant", "ms/step", "attention alone ms", "step without attention ms", "between ms"]


def render(
    results: Sequence[Measurement],
    bandwidth: float,
    title: str,
    *,
    notes: Sequence[str] = (),
    markdown: bool = False,
) -> str:
    """Tables for every length and batch size, what they mean, and what was special."""
    table = tables.markdown_table if markdown else tables.plain_table
    blocks = [title]
    for length in dict.fromkeys(row.length for row in results):
        for batch in dict.fromkeys(row.batch for row in results if row.length == length):
            rows = [row for row in results if (row.length, row.batch) == (length, batch)]
            blocks.append(_heading(f"{length} tokens, batch size {batch}", markdown))
            blocks += _group(rows, bandwidth, table)
    return "\n\n".join([*blocks, _copy_line(bandwidth), *_paragraphs(notes)]) + "\n"


def render_throughput(
    results: Sequence[Measurement],
    bandwidth: float,
    title: str,
    *,
    notes: Sequence[str] = (),
    markdown: bool = False,
) -> str:
    """One table: every variant at the largest batch that fits."""
    table = tables.markdown_table if markdown else tables.plain_table
    blocks = [title]
    for length in dict.fromkeys(row.length for row in results):
        rows = [row for row in results if row.length == length]
        blocks.append(_heading(f"{length} tokens, largest batch that fits", markdown))
        base = base_of(rows)
        header = ["batch", *_COLUMNS]
        header[0], header[1] = header[1], header[0]
        cells = [_cells(row, base, best_of(rows), bandwidth) for row in rows]
        body = [
            [line[0], str(row.batch or "-"), *line[1:]]
            for row, line in zip(rows, cells, strict=True)
        ]
        blocks.append(table(header, body))
        blocks += _left_out(rows)
    return "\n\n".join([*blocks, _copy_line(bandwidth), *_paragraphs(notes)]) + "\n"


def base_of(rows: Sequence[Measurement]) -> Measurement | None:
    """Full attention by our kernel among some rows."""
    return next((row for row in rows if row.variant == KERNEL), None)


def best_of(rows: Sequence[Measurement]) -> Measurement | None:
    """The full attention with the most tokens per second among some rows."""
    full = [row for row in rows if not row.method and row.tokens_per_second is not None]
    return max(full, key=lambda row: row.tokens_per_second or 0.0, default=None)


def _group(rows: Sequence[Measurement], bandwidth: float, table: object) -> list[str]:
    make = tables.plain_table if table is tables.plain_table else tables.markdown_table
    base, best = base_of(rows), best_of(rows)
    blocks = [make(_COLUMNS, [_cells(row, base, best, bandwidth) for row in rows])]
    prefilled = [row for row in rows if row.prefill_seconds is not None]
    if prefilled:
        blocks.append(make(_PREFILL, [_prefill_cells(row) for row in prefilled]))
    split = [row for row in rows if row.attention_seconds is not None]
    if split:
        blocks.append(make(_PARTS, [_part_cells(row) for row in split]))
    return blocks + _left_out(rows)


def _cells(
    row: Measurement, base: Measurement | None, best: Measurement | None, bandwidth: float
) -> list[str]:
    step, quartiles, rate = row.median_step, row.quartiles, row.bytes_per_second
    if row.status != MEASURED or step is None:
        return [row.variant, *["-"] * (len(_COLUMNS) - 2), row.status]
    return [
        row.variant,
        tables.percent(row.kept_tokens / row.length),
        _gib(row.stored_bytes),
        _gib(row.full_bytes),
        _gib(row.resident_bytes),
        _ms(step),
        "-" if quartiles is None else f"{_ms(quartiles[0])}..{_ms(quartiles[1])}",
        tables.number(row.tokens_per_second, 1),
        tables.number(row.step_bytes / GB, 2),
        "-" if rate is None else tables.number(rate / GB, 1),
        "-" if rate is None else tables.percent(rate / bandwidth),
        _times(speed_up(base, row)),
        _times(speed_up(best, row)),
        f"{row.ideal:.2f}x",
        tables.percent(share_of_ideal(base, row)),
        "yes" if row.captured else "no",
    ]


def _prefill_cells(row: Measurement) -> list[str]:
    return [
        row.variant,
        tables.number(row.prefill_seconds, 2),
        tables.number(row.compress_seconds, 3),
        tables.number(row.first_token_seconds, 2),
        _gib(row.prefill_peak_bytes),
    ]


def _part_cells(row: Measurement) -> list[str]:
    step, attention, rest = row.median_step, row.attention_seconds, row.rest_seconds
    between = None
    if step is not None and attention is not None and rest is not None:
        between = step - attention - rest
    return [row.variant, *(_ms(value) for value in (step, attention, rest, between))]


def _left_out(rows: Sequence[Measurement]) -> list[str]:
    """Why rows have no times, and why steps were not captured."""
    lines = [f"{row.variant}: {row.status}, {row.note}" for row in rows if row.note]
    lines += [f"{row.variant}: {row.shared_memory}" for row in rows if row.shared_memory]
    lines += [
        f"{row.variant}: not captured, {row.reason}"
        for row in rows
        if row.status == MEASURED and not row.captured and row.reason
    ]
    return ["\n".join(f"- {line}" for line in lines)] if lines else []


def _copy_line(bandwidth: float) -> str:
    return f"Copy bandwidth {bandwidth / GB:.1f} GB/s (read and write), measured in this run."


def _paragraphs(notes: Sequence[str]) -> list[str]:
    return [NOTES, *(note for note in notes if note)]


def _heading(text: str, markdown: bool) -> str:
    return f"## {text}" if markdown else text


def _gib(value: float | None) -> str:
    return "-" if value is None else f"{value / GIB:.3f}" if value < GIB else f"{value / GIB:.2f}"


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{1000 * seconds:.3f}" if abs(seconds) < 0.01 else f"{1000 * seconds:.2f}"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"
