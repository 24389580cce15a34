"""Files of the experiment, under the published names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from catekv.files import claim_folder, write_atomically
from experiments.atskv.cells import METRICS, MORE, Cell

#: Written first and last: where it is, the other files of the folder are ours.
SUMMARY = "experiment_summary.json"
#: Relevance predicted and true, of the first answer.
RELEVANCE = "atskv_metrics.json"
#: Numbers and table of a hosted model.
API_RESULTS, API_TABLE = "api_quality_reference.json", "api_quality_reference.md"
NAMES = ("log.txt", "results.md", "all_results_summary.json", RELEVANCE, API_RESULTS, API_TABLE)


@dataclass
class Output:
    """The folder of one experiment and what belongs into it."""

    folder: Path
    cells: list[Cell]
    configuration: dict[str, Any] = field(default_factory=dict)
    duration: float = 0.0
    timestamp: str = ""

    def prepare(self) -> None:
        """Make the folder; ``UserError`` if it cannot be written or holds what is another's."""
        results = [path.name for path in self.folder.glob("*_results.json")]
        claim_folder(self.folder, (*NAMES, "results", *results), SUMMARY)
        if not (self.folder / SUMMARY).exists():
            self.write_summary()

    def write_summary(self) -> None:
        """``experiment_summary.json``; of an unfinished run without duration."""
        content = {
            "configuration": self.configuration,
            "duration": self.duration or None,
            "timestamp": self.timestamp or None,
        }
        self.write_json(SUMMARY, content)

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
        from catekv.methods.atskv.files import load_predictors

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
