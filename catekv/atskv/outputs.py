"""Files of the experiment, under the published names."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catekv.files import check_folder, write_atomically

if TYPE_CHECKING:
    from catekv.atskv.choices import Benchmark
    from catekv.atskv.measuring import Measurement
    from catekv.tasks.sample import Sample

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
    from catekv.atskv.measuring import perplexity

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
    from catekv.methods.relevance_control import memory_reduction

    return memory_reduction(method, full)


@dataclass
class Output:
    """The folder of one experiment and what belongs into it."""

    folder: Path
    cells: list[Cell]
    configuration: dict[str, Any] = field(default_factory=dict)
    duration: float = 0.0
    timestamp: str = ""

    def prepare(self) -> None:
        """Make the folder; ``UserError`` if it cannot be written."""
        check_folder(self.folder)

    def write_text(self, name: str, content: str) -> None:
        """A file in the folder; ``UserError`` if it cannot be written."""
        write_atomically(self.folder / name, content)

    def write_json(self, name: str, content: Any) -> None:
        """A JSON file in the folder."""
        self.write_text(name, json.dumps(content, indent=1) + "\n")

    def benchmarks(self) -> dict[str, str]:
        """Slugs and names, in order."""
        return {cell.slug: cell.benchmark for cell in self.cells}

    def methods(self) -> list[str]:
        return list(dict.fromkeys(cell.method for cell in self.cells))

    def of(self, slug: str, method: str) -> list[Cell]:
        """Cells of a benchmark and method, by size."""
        return [cell for cell in self.cells if (cell.slug, cell.method) == (slug, method)]

    def compared(self, slug: str, method: str) -> list[Cell]:
        """Those of :meth:`of` that means are taken over: at sizes where every method that was
        measured at all was measured, so that none is judged by its easy sizes alone."""
        sizes = [
            {cell.size for cell in self.of(slug, name) if cell.measurements}
            for name in self.methods()
        ]
        shared = set.intersection(*filter(None, sizes)) if any(sizes) else set()
        return [cell for cell in self.of(slug, method) if cell.size in shared]

    def write_results(self) -> None:
        """``{benchmark}_{method}_results.json`` of everything measured so far, and the summary."""
        summary: dict[str, Any] = {}
        for slug in self.benchmarks():
            for method in self.methods():
                result = result_object(self.of(slug, method))
                self.write_json(f"{slug}_{file_name(method)}_results.json", result)
                brief = {name: value for name, value in result.items() if name != "examples"}
                summary.setdefault(slug, {})[method] = brief
        self.write_json("all_results_summary.json", summary)

    def copy_thresholds(self, folder: str) -> None:
        """``threshold_controller_params.json`` of the predictors that are used."""
        from catekv.methods.relevance_files import load_predictors

        found = load_predictors(folder)
        layers = len(found.layers)
        self.write_json(
            "relevance_predictor/threshold_controller_params.json",
            {
                "layer_quantiles": list(found.layer_quantiles or [0.7] * layers),
                "layer_betas": list(found.layer_betas or [1.0] * layers),
                "predictor": str(folder),
            },
        )

    def finish(self, started: datetime, duration: float, plots: bool) -> None:
        """Figures, tables, ``results.md`` and ``experiment_summary.json``."""
        from catekv.atskv.figures import draw
        from catekv.atskv.report import results_text

        self.duration, self.timestamp = duration, started.isoformat(timespec="seconds")
        self.write_results()
        drawn = draw(self) if plots else []
        self.write_text("results.md", results_text(self, drawn))
        self.write_json(
            "experiment_summary.json",
            {
                "configuration": self.configuration,
                "duration": duration,
                "timestamp": self.timestamp,
            },
        )

    def table(self) -> str:
        """All benchmarks as text."""
        from catekv.atskv.report import method_table

        return "\n\n".join(
            f"{name}\n{method_table(self, slug)}" for slug, name in self.benchmarks().items()
        )


def file_name(method: str) -> str:
    """A method as part of a file name."""
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in method)


def result_object(cells: Sequence[Cell]) -> dict[str, Any]:
    """The published lists over context sizes, and what else is known of them."""
    found: dict[str, Any] = {
        name: [cell.values[name] for cell in cells] for name in (*METRICS, *MORE)
    }
    return {
        **found,
        "context_lengths": [cell.size for cell in cells],
        "reasons": [cell.reason for cell in cells],
        "samples": [len(cell.measurements) for cell in cells],
        "failed": [list(cell.failed) for cell in cells],
        "data": [cell.data for cell in cells],
        "examples": [[asdict(one) for one in cell.measurements] for cell in cells],
    }
