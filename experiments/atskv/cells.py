"""A cell of the experiment's tables, and what is measured in it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from catekv.tasks.core.sample import Sample
    from experiments.atskv.choices import Benchmark
    from experiments.atskv.measuring import Measurement


MEBIBYTE = 2**20


#: published names of the lists over context sizes, with their units for figures and tables
METRICS = {
    "memory_usage": "MiB on the device",
    "time_to_first_token": "s",
    "generation_time": "s",
    "tokens_per_second": "tokens/s",
    "accuracy": "share",
    "perplexity": "",
}


#: further lists: all tiers together, the tiers, and an uncompressed cache
MORE = ("memory_total", "memory_active", "memory_features", "memory_passive", "memory_full",
        "memory_reduction", "memory_reduction_all_tiers", "active_share")  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One benchmark, method and size.

    Attributes:
        values: of :data:`METRICS` and :data:`MORE`; None where nothing was measured, and ``reason``
            says why.
        measurements: of every example. failed: errors of those that have none.
    """

    benchmark: str
    slug: str
    method: str
    size: int
    values: dict[str, float | None]
    reason: str | None = None
    data: str = ""
    measurements: tuple[Measurement, ...] = ()
    failed: tuple[str, ...] = ()

    def line(self) -> str:
        """The cell in a few words."""
        if self.reason is not None:
            return self.reason
        memory, saved = self.values["memory_usage"], self.values["memory_reduction"]
        assert saved is not None
        return (
            f"accuracy {self.values['accuracy']:.3f}, {memory:.2f} MiB "
            f"({round(saved, 1) + 0.0:.1f}% less), "
            f"first token {self.values['time_to_first_token']:.3f} s"
        )


def empty_cell(chosen: Benchmark, method: str, size: int, reason: str) -> Cell:
    """A size that was not measured."""
    nothing: dict[str, float | None] = dict.fromkeys([*METRICS, *MORE])
    return Cell(chosen.name, chosen.slug, method, size, nothing, reason)


def filled_cell(
    chosen: Benchmark,
    method: str,
    size: int,
    found: Sequence[Measurement],
    failed: Sequence[str],
    samples: Sequence[Sample],
) -> Cell:
    """Means over the examples; perplexity over all tokens of all right answers."""
    from experiments.atskv.measuring import perplexity

    data = str(samples[0].metadata.get("data", "generated"))
    if not found:
        cell = empty_cell(chosen, method, size, f"all examples failed: {failed[0]}")
        return Cell(**{**vars(cell), "data": data, "failed": tuple(failed)})

    def mean(get: Callable[[Measurement], float | None]) -> float | None:
        known = [value for one in found if (value := get(one)) is not None]
        return statistics.fmean(known) if known else None

    device = mean(lambda one: one.tiers.device / MEBIBYTE)
    total = mean(lambda one: (one.tiers.device + one.tiers.passive) / MEBIBYTE)
    full = mean(lambda one: one.tiers.full / MEBIBYTE)
    assert device is not None
    assert total is not None
    assert full is not None
    values = {
        "memory_usage": device,
        "time_to_first_token": mean(lambda one: one.first_token_s),
        "generation_time": mean(lambda one: one.generation_s),
        "tokens_per_second": mean(lambda one: one.steps / one.decode_s if one.steps else None),
        "accuracy": mean(lambda one: one.accuracy),
        "perplexity": perplexity([(one.loss, one.answer_tokens) for one in found]),
        "memory_total": total,
        "memory_active": mean(lambda one: one.tiers.active / MEBIBYTE),
        "memory_features": mean(lambda one: one.tiers.features / MEBIBYTE),
        "memory_passive": mean(lambda one: one.tiers.passive / MEBIBYTE),
        "memory_full": full,
        "memory_reduction": reduction(device, full),
        "memory_reduction_all_tiers": reduction(total, full),
        "active_share": mean(lambda one: one.active_share),
    }
    return Cell(
        chosen.name, chosen.slug, method, size, values, None, data, tuple(found), tuple(failed)
    )


def reduction(method: float, full: float) -> float:
    """Per cent saved against an uncompressed cache of the same contexts."""
    from catekv.methods.atskv.control import memory_reduction

    return memory_reduction(method, full)
