"""Files of a comparison: a table of samples, a summary under the published names, all details."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from catekv.errors import UserError
from catekv.files import read_object, write_atomically, write_json, write_table
from catekv.version import __version__
from experiments.simcalkv.benchmarks import Example
from experiments.simcalkv.comparison import Side
from experiments.simcalkv.scores import dataset_metrics

#: published columns in their order, and two that the published code computed and did not write
COLUMNS = (
    "id",
    "dataset",
    "kv_method",
    "memory_before_MB",
    "memory_after_MB",
    "time_before_s",
    "time_after_s",
    "throughput_before_tokens_s",
    "throughput_after_tokens_s",
    "answer_before",
    "answer_after",
    "reference",
    "ratio",
)
_PARTS = ("prefill_s", "compress_s", "decode_s", "time_s")


@dataclass(frozen=True)
class Pair:
    """One sample, read without and with compression."""

    example: Example
    before: Side
    after: Side


@dataclass(frozen=True)
class Results:
    """All samples of one method at one ratio.

    Attributes:
        label: of the method, as in file names.
        method: its name and options in catekv; model_name: as it was given.
        family: first part of the file names: ``llama``, ``qwen`` or the model's own type.
        failed: (identifier, error) of samples that could not be measured.
        settings: what else decides the numbers.
    """

    dataset: str
    label: str
    ratio: float
    method: dict[str, Any]
    model_name: str
    family: str
    pairs: Sequence[Pair]
    failed: Sequence[tuple[str, str]]
    settings: dict[str, Any]

    @property
    def csv_name(self) -> str:
        return f"{self.family}_results_{self.dataset}_{self.label}_{self.ratio:g}.csv"

    @property
    def json_name(self) -> str:
        return f"{self.family}_{self.dataset}_{self.label}_{self.ratio:g}.json"


def family_of(model_type: str) -> str:
    """How the published files name a model: ``llama``, ``qwen``, or what its configuration says."""
    return "qwen" if model_type.startswith("qwen") else model_type


def rows(results: Results) -> list[dict[str, Any]]:
    """One row of :data:`COLUMNS` per sample."""
    return [
        dict(
            zip(
                COLUMNS,
                (
                    pair.example.identifier,
                    results.dataset,
                    results.label,
                    pair.before.memory_mb,
                    pair.after.memory_mb,
                    pair.before.time_s,
                    pair.after.time_s,
                    pair.before.throughput,
                    pair.after.throughput,
                    pair.before.answer,
                    pair.after.answer,
                    pair.example.references[0],
                    results.ratio,
                ),
                strict=True,
            )
        )
        for pair in results.pairs
    ]


def summary(results: Results) -> dict[str, Any]:
    """The published keys, all of them means over the samples; ``means`` and ``sums`` of every
    measured number; and what was run.

    ``time_before`` and ``time_after`` are seconds of prefill, compression and decoding together.
    A throughput is the mean of the samples that decoded anything, None without any.
    """
    before, after = (
        [getattr(pair, side) for pair in results.pairs] for side in ("before", "after")
    )
    examples = [pair.example for pair in results.pairs]
    numbers = {
        f"{part.removesuffix('_s')}_{name}_s": [getattr(side, part) for side in sides]
        for name, sides in (("before", before), ("after", after))
        for part in _PARTS
    }
    numbers["memory_before_MB"] = [side.memory_mb for side in before]
    numbers["memory_after_MB"] = [side.memory_mb for side in after]
    numbers["tokens_before"] = [float(side.steps) for side in before]
    numbers["tokens_after"] = [float(side.steps) for side in after]
    means = {name: _mean(values) for name, values in numbers.items()}
    speed_before, speed_after = (
        _mean([side.throughput for side in sides]) for sides in (before, after)
    )
    return {
        "dataset": results.dataset,
        "kv_method": results.label,
        "model_name": results.model_name,
        "compress_ratio": results.ratio,
        "metrics_before": dataset_metrics(
            results.dataset, [side.answer for side in before], examples
        ),
        "metrics_after": dataset_metrics(
            results.dataset, [side.answer for side in after], examples
        ),
        "avg_memory_saving_MB": _difference(means["memory_before_MB"], means["memory_after_MB"]),
        "time_before": means["time_before_s"],
        "time_after": means["time_after_s"],
        "avg_time_saving_s": _difference(means["time_before_s"], means["time_after_s"]),
        "throughput_before": speed_before,
        "throughput_after": speed_after,
        "avg_throughput_improvement_tokens_s": _difference(speed_after, speed_before),
        "means": means,
        "sums": {name: sum(values) for name, values in numbers.items()},
        "samples": len(results.pairs),
        "failed": [{"id": name, "error": error} for name, error in results.failed],
        "same_answers": sum(
            one.answer == other.answer for one, other in zip(before, after, strict=True)
        ),
        "kept_share": _mean([side.kept_share for side in after]),
        "prompt_tokens": _mean([float(len(example.context_ids)) for example in examples]),
        "method": results.method,
        "settings": results.settings,
        "catekv": __version__,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def refuse_other_model(path: Path, model_name: str) -> None:
    """Raise ``UserError`` if a summary holds results of another model.

    Results of the same model are measured anew and replaced.
    """
    if not path.exists():
        return
    try:
        known = read_object(path).get("model_name")
    except (OSError, ValueError, AttributeError):
        known = None
    if known != model_name:
        raise UserError(
            f"{path} holds results of {known or 'something else'}, not of {model_name}; "
            "use another --output_dir"
        )


def write(folder: Path, results: Results) -> tuple[Path, Path]:
    """Write the CSV, the summary and, as JSON lines, every sample with all its numbers.

    Returns:
        Paths of the CSV and of the summary.

    Raises:
        UserError: the folder cannot be written.
    """
    table, overview = folder / results.csv_name, folder / results.json_name
    write_table(table, COLUMNS, [[row[name] for name in COLUMNS] for row in rows(results)])
    lines = [json.dumps(_details(pair), ensure_ascii=False) + "\n" for pair in results.pairs]
    write_atomically(table.with_suffix(".jsonl"), "".join(lines))
    write_json(overview, summary(results), indent=1)
    return table, overview


def _details(pair: Pair) -> dict[str, Any]:
    return {
        "id": pair.example.identifier,
        "prompt_tokens": len(pair.example.context_ids),
        "references": list(pair.example.references),
        "choices": list(pair.example.choices),
        "before": asdict(pair.before),
        "after": asdict(pair.after),
    }
