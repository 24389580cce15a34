"""A fidelity run as a report: curves over the kept share, and all numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from catekv.evaluation import tables
from catekv.evaluation.columns.edges import edge_notes
from catekv.evaluation.fidelity.passages import TEXT
from catekv.evaluation.fidelity.settings import Settings
from catekv.evaluation.fidelity.summary import ALL, Row
from catekv.evaluation.report.document import NOTE, WARNING, Figure, Section, Table, Text
from catekv.evaluation.report.names import file_stem
from catekv.evaluation.report.plots import Point, over_share
from catekv.evaluation.report.statistics import FEW, Estimate
from catekv.evaluation.report.styles import styles
from catekv.evaluation.report.untouched import MARK
from catekv.models.source import short_name

#: What is drawn: stem of the figure, title of the axis, and the value in its unit.
_DRAWN: tuple[tuple[str, str, Callable[[Row], Estimate], float], ...] = (
    ("kl", "KL(full || method), nats per token", lambda row: row.divergence, 1.0),
    ("agreement", "same first choice as full, %", lambda row: row.agreement, 100.0),
    ("perplexity", "perplexity minus that of full", lambda row: row.perplexity_change, 1.0),
)
_HEADER = (
    "method", "kept", "KL per token", "same first choice", "perplexity", "full",
    "difference",
)  # fmt: skip


def document(settings: Settings, rows: Sequence[Row], refused: Mapping[str, str]) -> Section:
    """The whole report."""
    page = Section(f"Fidelity to the full cache: {short_name(settings.model)}")
    page.blocks.append(
        Text(
            f"Every context was read once and compressed by every method; then the next "
            f"{settings.forced} tokens (of an answer at most so many) were given and the "
            "predictions before each of them compared with those of the full cache. KL(full || "
            "method) is 0 where nothing changed. Intervals are 95 % bootstrap intervals over "
            f"passages, with fewer than {FEW} of a source widened as Student's t is; one passage "
            f"has none. {settings.dtype} on {settings.device}."
        )
    )
    page.blocks += [Text(note, NOTE) for note in notes_of(settings)]
    for column, reason in refused.items():
        page.blocks.append(Text(f"Not measured: {column}: {reason}", WARNING))
    if (sentence := untouched(rows)) is not None:
        page.blocks.append(Text(sentence, WARNING))
    style = styles(list(dict.fromkeys(row.method for row in rows)))
    for kind in dict.fromkeys(row.kind for row in rows):
        of_kind = [row for row in rows if row.kind == kind]
        title = "Continuation of texts" if kind == TEXT else "The full model's own answers"
        section = Section(title)
        if kind != TEXT:
            asked = "after" if settings.question == "agnostic" else "inside"
            section.blocks.append(
                Text(f"The question stands {asked} the compressed context.", NOTE)
            )
        for source, length in dict.fromkeys((row.source, row.length) for row in of_kind):
            cell = [row for row in of_kind if (row.source, row.length) == (source, length)]
            name = "all sources" if source == ALL else source
            part = Section(f"{name}, {length} tokens")
            points = {
                method: [row for row in cell if row.method == method]
                for method in dict.fromkeys(row.method for row in cell)
            }
            for stem, axis, value, unit in _DRAWN:
                series = {
                    method: [_point(row, value(row), unit) for row in line]
                    for method, line in points.items()
                }
                heading = f"{axis[0].upper()}{axis[1:]}: {name}, {length} tokens"
                part.blocks.append(
                    Figure(
                        file_stem(f"{stem}-{kind}-{source}-{length}"),
                        over_share(series, style, heading, axis),
                        f"{heading}, over the kept share of the entries; mean and interval.",
                    )
                )
            part.blocks.append(table(cell, f"{title}: {name}, {length} tokens"))
            section.sections.append(part)
        page.sections.append(section)
    return page


def _point(row: Row, value: Estimate, unit: float) -> Point:
    low, high = (
        unit * (end if math.isfinite(end) else value.mean) for end in (value.low, value.high)
    )
    return Point(title_of(row), 100 * row.kept_share, unit * value.mean, low, high, row.method)


def title_of(row: Row) -> str:
    """The column's name, marked where nothing was compressed."""
    name = row.method if row.ratio is None else f"{row.method} at {100 * row.ratio:g} %"
    return name + (MARK if row.untouched else "")


def untouched(rows: Sequence[Row]) -> str | None:
    """A sentence about the columns that compressed nothing."""
    names = dict.fromkeys(f"{row.method}, {row.length} tokens" for row in rows if row.untouched)
    if not names:
        return None
    return (
        f"Nothing compressed: {'; '.join(names)}. These columns kept the whole context, so their "
        "distance says nothing about the method; give longer --lengths, smaller --ratios or a "
        "smaller --budget."
    )


def table(rows: Sequence[Row], caption: str) -> Table:
    """The numbers of one source and length, a line per column."""
    count = rows[0].divergence.count
    return Table(f"{caption}; {count} passages", _HEADER, [_cells(row) for row in rows])


def _cells(row: Row) -> list[str]:
    return [
        title_of(row),
        tables.percent(row.kept_share),
        _shown(row.divergence, "{:.4f}"),
        _shown(row.agreement, "{:.3f}"),
        _shown(row.perplexity, "{:.2f}"),
        f"{row.full_perplexity.mean:.2f}",
        _shown(row.perplexity_change, "{:+.2f}"),
    ]


def _shown(value: Estimate, form: str) -> str:
    if value.count == 1 or not math.isfinite(value.low + value.high):
        return form.format(value.mean)
    low, high = form.format(value.low), form.format(value.high)
    return f"{form.format(value.mean)} ({low} .. {high})"


def notes_of(settings: Settings) -> list[str]:
    """What every column that takes a head mask always kept."""
    return edge_notes({column.label: column.spec.to_dict() for column in settings.columns})


def plain(rows: Sequence[Row]) -> str:
    """All sources together (or the only one) for a terminal."""
    sources = {(row.kind, row.length) for row in rows if row.source == ALL}
    parts = []
    for kind, length in dict.fromkeys((row.kind, row.length) for row in rows):
        cell = [
            row
            for row in rows
            if (row.kind, row.length) == (kind, length)
            and (row.source == ALL) == ((kind, length) in sources)
        ]
        what = "continuation of texts" if kind == TEXT else "the full model's own answers"
        parts.append(
            f"{what}, {length} tokens, {cell[0].divergence.count} passages\n"
            + tables.plain_table(_HEADER, [_cells(row) for row in cell])
        )
    parts += filter(None, [untouched(rows)])
    return "\n\n".join(parts)
