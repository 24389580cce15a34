"""What ``catekv efficiency`` measured: step times, memory, and where a step goes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from catekv.evaluation import tables
from catekv.evaluation.efficiency.measurement import MEASURED, Measurement, speed_up
from catekv.evaluation.efficiency.render import base_of, best_of
from catekv.evaluation.report.document import NOTE, Block, Figure, Listing, Section, Table, Text
from catekv.evaluation.report.inputs import Efficiency
from catekv.evaluation.report.names import file_stem
from catekv.evaluation.report.plots import curves, stacked_bars
from catekv.evaluation.report.styles import styles
from catekv.prefill.sizes import GIB

_PARTS = ("attention alone", "step without attention", "between")


def efficiency_section(result: Efficiency) -> Section:
    """Tables per length and batch size, curves over lengths, and the parts of a step."""
    content = result.content
    rows = result.rows
    section = Section(f"Efficiency: {content['title']}", [])
    section.blocks += [Text(str(note), NOTE) for note in content.get("notes", [])]
    stem = f"efficiency-{file_stem(result.name)}"
    section.blocks += _curves(rows, stem)
    for length, batch in dict.fromkeys((row.length, row.batch) for row in rows):
        own = [row for row in rows if (row.length, row.batch) == (length, batch)]
        section.blocks.append(_table(own, f"{length} tokens, batch size {batch}"))
        section.blocks += _breakdown(own, f"{stem}-{length}-{batch}")
    own_manifest = {name: value for name, value in content.items() if name != "results"}
    section.blocks.append(
        Listing(f"How {result.name} was measured", json.dumps(own_manifest, indent=2))
    )
    return section


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.3g}"


def _table(rows: Sequence[Measurement], title: str) -> Table:
    header = [
        "variant", "kept", "cache GiB", "full GiB", "ms/step", "quartiles", "tokens/s",
        "vs our full", "vs best full", "ideal", "first token s", "state",
    ]  # fmt: skip
    base, best = base_of(rows), best_of(rows)
    lines = []
    for row in rows:
        if row.status != MEASURED or row.median_step is None:
            note = f"{row.status}: {row.note}" if row.note else row.status
            lines.append([row.variant, *["-"] * (len(header) - 2), note])
            continue
        quartiles = row.quartiles
        lines.append(
            [
                row.variant,
                tables.percent(row.kept_tokens / row.length if row.length else None),
                tables.number(row.stored_bytes / GIB, 3),
                tables.number(row.full_bytes / GIB, 3),
                _milliseconds(row.median_step),
                "-" if quartiles is None else " .. ".join(map(_milliseconds, quartiles)),
                tables.number(row.tokens_per_second),
                _times(speed_up(base, row)),
                _times(speed_up(best, row)),
                f"{row.ideal:.2f}x",
                tables.number(row.first_token_seconds, 2),
                "CUDA graph" if row.captured else "measured",
            ]
        )
    caption = (
        f"{title}: median decode step and its quartiles; ratios of tokens per second to full "
        "attention; ideal: what bytes alone would give"
    )
    return Table(caption, header, lines)


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"


def _curves(rows: Sequence[Measurement], stem: str) -> list[Block]:
    measured = [row for row in rows if row.status == MEASURED and row.median_step is not None]
    batch = min((row.batch for row in measured), default=1)
    own = [row for row in measured if row.batch == batch]
    if len({row.length for row in own}) < 2:
        return []
    style = styles(list(dict.fromkeys(row.variant for row in own)))
    blocks: list[Block] = []
    values: dict[str, Any] = {
        "decode step, ms": lambda row: 1000 * (row.median_step or 0.0),
        "cache, GiB": lambda row: row.stored_bytes / GIB,
    }
    for number, (title, value) in enumerate(values.items()):
        series: dict[str, list[tuple[float, float]]] = {}
        for row in own:
            series.setdefault(row.variant, []).append((float(row.length), value(row)))
        caption = f"{title[0].upper()}{title[1:]} over context lengths, batch size {batch}"
        blocks.append(
            Figure(f"{stem}-{number}", curves(series, style, caption, title), f"{caption}.")
        )
    return blocks


def _breakdown(rows: Sequence[Measurement], stem: str) -> list[Block]:
    """Where a step goes, for the variants of which that was measured."""
    bars: dict[str, list[float]] = {}
    lines = []
    for row in rows:
        attention, rest, step = row.attention_seconds, row.rest_seconds, row.median_step
        if attention is None or rest is None or step is None:
            continue
        between = step - attention - rest
        # a step can be shorter than its parts alone, which begin with cold caches
        bars[row.variant] = [1000 * attention, 1000 * rest, 1000 * max(0.0, between)]
        lines.append([row.variant, *map(_milliseconds, (step, attention, rest, between))])
    if not bars:
        return []
    title = f"Where a decode step goes, {rows[0].length} tokens, batch size {rows[0].batch}"
    table = Table(f"{title} (ms)", ["variant", "step", *_PARTS], lines)
    return [
        Figure(
            f"{stem}-parts",
            stacked_bars(bars, _PARTS, title, "ms"),
            f"{title}: the attention of all layers alone, the step with an attention that does "
            "nothing, and what neither has.",
        ),
        table,
    ]
