"""Scores of answers over removed shares: every prompt is read once and compressed many times."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catekv import methods
from catekv.errors import UserError
from catekv.evaluation import plots
from catekv.evaluation.run import request as evaluated
from catekv.evaluation.run.session import open_model
from catekv.files import write_atomically, write_table
from catekv.methods import Needs
from experiments.simcalkv.arguments import (
    add_data_arguments,
    add_method_arguments,
    add_model_arguments,
    examples_of,
)
from experiments.simcalkv.benchmarks import Example
from experiments.simcalkv.compare import recipe_of, request_of, settings_of
from experiments.simcalkv.comparison import answer_of
from experiments.simcalkv.journal import Measured, Rows, unfinished
from experiments.simcalkv.kv_methods import Choice
from experiments.simcalkv.pairs import UNCOMPRESSED
from experiments.simcalkv.results import refuse_other_model
from experiments.simcalkv.scores import dataset_metrics

if TYPE_CHECKING:
    from catekv.model import CateKVModel

RATIOS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


@dataclass(frozen=True)
class Point:
    """One method at one ratio over all samples; ``kept_share`` is measured.

    ``refused`` says why the method cannot run at this ratio; there are no scores then.
    """

    label: str
    ratio: float
    kept_share: float | None
    scores: dict[str, float]
    refused: str | None = None


def sweep(
    model: CateKVModel,
    dataset: str,
    examples: Sequence[Example],
    choices: Sequence[Choice],
    journal: Rows,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Point]:
    """Scores of every choice; the first point is the model without compression.

    A method that cannot run at a ratio for any sample gets a point without scores. Every example is
    in the journal once all methods answered it; those which it holds are taken from there.
    """
    wanted = [UNCOMPRESSED, *choices]
    made = [choice.method() for choice in wanted]
    for method in made:
        method.validate(model.shape)
    answers: list[list[str]] = [[] for _ in wanted]
    kept: list[list[float]] = [[] for _ in wanted]
    refused: dict[int, str] = {}
    for row, example in enumerate(examples):
        fitted: dict[int, methods.Method] = {}
        for index, choice in enumerate(wanted):
            try:
                tokens = len(example.context_ids)
                fitted[index] = choice.of_length(made[index], tokens, model.shape)
            except UserError as error:
                refused[index] = str(error)
        if row not in journal.rows:
            dense = model.observe(example.context_ids, needs=Needs.of_all(fitted.values()))
            found = {}
            for index, method in fitted.items():
                context = dense.compress(method)
                found[str(index)] = (answer_of(model, context, example), context.kept_share())
            journal.append(Measured(row, found))
        for index in fitted:
            answer, share = journal.rows[row].value[str(index)]
            answers[index].append(answer)
            kept[index].append(share)
        progress(f"{row + 1}/{len(examples)}")
    points = []
    for index, choice in enumerate(wanted):
        if index in refused:
            points.append(Point(choice.label, choice.ratio, None, {}, refused[index]))
            continue
        scores = flat(dataset_metrics(dataset, answers[index], examples))
        points.append(Point(choice.label, choice.ratio, sum(kept[index]) / len(examples), scores))
    return points


def flat(metrics: dict[str, Any]) -> dict[str, float]:
    """Nested scores as one dictionary."""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        found |= value if isinstance(value, dict) else {name: value}
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All flags of the command."""
    add_model_arguments(parser)
    add_data_arguments(parser, "cnn_dailymail", "test[:8]")
    add_method_arguments(parser, RATIOS)
    parser.add_argument("--no_plots", action="store_true", help="numbers only")
    parser.add_argument("--output_dir", default="results", help="folder (default: %(default)s)")


def command(parsed: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    request = request_of(parsed)
    model = open_model(
        evaluated.Request(parsed.model_name, parsed.dtype, parsed.device), for_text=True
    )
    examples = examples_of(parsed.dataset, request.split, model, request.reading)
    folder, summary = request.output, f"sweep_{parsed.dataset}.json"
    refuse_other_model(folder / summary, parsed.model_name)
    recipe = recipe_of(request, model, examples)
    with unfinished(folder, f"sweep_{parsed.dataset}", recipe) as journal:
        points = sweep(
            model,
            parsed.dataset,
            examples,
            request.choices,
            journal,
            lambda text: print(f"\r{text} ", end="", file=sys.stderr),
        )
        print(file=sys.stderr)
        try:
            written = write(folder, parsed.dataset, points, not parsed.no_plots)
            write_answers(folder, parsed.dataset, examples, points, journal)
            description = {
                "model_name": parsed.model_name,
                "dataset": parsed.dataset,
                "samples": len(examples),
                **settings_of(request, model, examples),
                "points": [vars(point) for point in points],
            }
            write_atomically(folder / summary, json.dumps(description, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror or error}") from None
        journal.remove()
    print(written.read_text(), end="")
    for label in dict.fromkeys(point.label for point in points if point.refused is not None):
        refused = [point for point in points if point.refused is not None and point.label == label]
        ratios = " ".join(f"{point.ratio:g}" for point in refused)
        print(f"note: {label} cannot run at {ratios}: {refused[0].refused}", file=sys.stderr)
    print(f"Files: {folder}")
    return 0


def write_answers(
    folder: Path,
    dataset: str,
    examples: Sequence[Example],
    points: Sequence[Point],
    journal: Rows,
) -> None:
    """Every answer as JSON lines, a line per sample."""
    lines = []
    for row, example in enumerate(examples):
        line = {
                "id": example.identifier,
                "references": list(example.references),
                "answers": [
                    {"method": points[int(index)].label, "ratio": points[int(index)].ratio,
                     "kept_share": share, "answer": answer}
                    for index, (answer, share) in journal.rows[row].value.items()
                ],
            }  # fmt: skip
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_atomically(folder / f"sweep_{dataset}.jsonl", "".join(lines))


def write(folder: Path, dataset: str, points: Sequence[Point], draw: bool) -> Path:
    """A CSV of all points, and per score a picture of it against the ratio."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(points[0].scores)
    table = folder / f"sweep_{dataset}.csv"
    lines: list[list[Any]] = []
    for point in points:
        share = None if point.kept_share is None else round(point.kept_share, 4)
        scores = [round(point.scores[name], 4) if point.scores else None for name in names]
        lines.append([point.label, point.ratio, share, *scores])
    write_table(table, ["method", "ratio", "kept_share", *names], lines)
    if draw:
        full, *rest = points
        for name in names:
            curves: dict[str, tuple[list[float], list[float]]] = {}
            for point in rest:
                if point.scores:
                    places, values = curves.setdefault(point.label, ([], []))
                    places.append(point.ratio)
                    values.append(100 * point.scores[name])
            plots.lines(
                folder / f"sweep_{dataset}_{name}.png",
                curves,
                f"{dataset}: {name} against the removed share",
                "removed share of the prompt",
                name,
                (100 * full.scores[name], "without compression"),
            )
    return table
