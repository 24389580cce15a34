"""Means over passages with their intervals."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from catekv.evaluation.fidelity.passages import ANSWERS, TEXT
from catekv.evaluation.fidelity.records import FidelityRecord, Key
from catekv.evaluation.report.statistics import (
    Estimate,
    bootstrap_average,
    interval,
    resampled_averages,
)

#: what the sources of a kind are called together
ALL = "all"


@dataclass(frozen=True)
class Row:
    """One column on the passages of one source, or of all sources of a kind (``all``).

    Sources weigh alike and are resampled each on its own; so are passages within a source.
    ``divergence``: nats per token. ``agreement``: in [0, 1]. ``perplexity``: exp of the mean loss
    per token; ``perplexity_change``: minus the full cache's on the same tokens. ``untouched``: on
    all of these passages nothing was compressed.
    """

    kind: str
    source: str
    length: int
    method: str
    ratio: float | None
    kept_share: float
    divergence: Estimate
    agreement: Estimate
    perplexity: Estimate
    full_perplexity: Estimate
    perplexity_change: Estimate
    untouched: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values; None for an end of an interval that is not finite."""
        found = asdict(self)
        for part in found.values():
            if isinstance(part, dict):
                part |= {end: None for end in ("low", "high") if not math.isfinite(part[end])}
        return found


def rows_of(
    records: Iterable[FidelityRecord], untouched: Container[Key] = frozenset()
) -> list[Row]:
    """Per kind and length the columns over all sources, then those of every source; the columns in
    the order of the records.

    Args:
        untouched: keys of the records in which nothing was compressed.
    """
    measured = [record for record in records if record.refused is None]
    rows = []
    for kind in (TEXT, ANSWERS):
        of_kind = [record for record in measured if record.kind == kind]
        sources = list(dict.fromkeys(record.source for record in of_kind))
        for length in sorted({record.length for record in of_kind}):
            for source in ([ALL] if len(sources) > 1 else []) + sources:
                cell = [r for r in of_kind if r.length == length and source in (ALL, r.source)]
                for name in dict.fromkeys((r.method, r.ratio) for r in cell):
                    own = [r for r in cell if (r.method, r.ratio) == name]
                    # an average over fewer sources would not compare
                    if len({r.source for r in own}) == len({r.source for r in cell}):
                        row = _row(kind, source, length, own)
                        alike = all(record.key in untouched for record in own)
                        rows.append(replace(row, untouched=alike))
    return rows


def _row(kind: str, source: str, length: int, records: Sequence[FidelityRecord]) -> Row:
    def groups(field: str) -> dict[str, list[float]]:
        values: dict[str, list[float]] = {}
        for record in records:
            values.setdefault(record.source, []).append(getattr(record, field))
        return values

    def average(field: str) -> Estimate:
        estimate = bootstrap_average(groups(field))
        assert estimate is not None
        return estimate

    loss, full = average("loss").within(0.0), average("full_loss").within(0.0)
    # two losses whose perplexities no number holds have no difference: it gets no interval
    with np.errstate(over="ignore", invalid="ignore"):
        change = np.exp(resampled_averages(groups("loss"))) - np.exp(
            resampled_averages(groups("full_loss"))
        )
    perplexity, reference = _exp(loss), _exp(full)
    return Row(
        kind,
        source,
        length,
        records[0].method,
        records[0].ratio,
        average("kept_share").mean,
        average("divergence").within(0.0),
        average("agreement").within(0.0, 1.0),
        perplexity,
        reference,
        Estimate(perplexity.mean - reference.mean, *interval(change), loss.count),
    )


def _exp(loss: Estimate) -> Estimate:
    """A mean loss per token as a perplexity."""
    mean, low, high = (
        math.exp(value) if value < 700 else math.inf for value in (loss.mean, loss.low, loss.high)
    )
    return Estimate(mean, low, high, loss.count)


def refusals(records: Iterable[FidelityRecord]) -> dict[str, str]:
    """Columns that could not be measured on some passages -> the first reason."""
    reasons: dict[str, str] = {}
    for record in records:
        if record.refused is not None:
            share = "" if record.ratio is None else f" at {100 * record.ratio:g} %"
            reasons.setdefault(f"{record.method}{share}, {record.length} tokens", record.refused)
    return reasons
