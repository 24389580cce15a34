"""Mask the most or the least important heads, or any, and see what the test score loses.

With ``--source`` the scores of another task say which heads are masked (cross-dataset masking).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tqdm import tqdm

from catekv.calibration.cokv.coalitions import CoalitionScorer
from catekv.calibration.cokv.split import find_split, refuse_overlap
from catekv.commands.arguments import PROGRESS
from catekv.commands.numbers import item_count
from catekv.commands.schema import integers
from catekv.evaluation.figure_files import write_figure
from catekv.evaluation.report.statistics import SCORES, bootstrap_average
from catekv.evaluation.run.asking import Trial
from catekv.evaluation.tables import markdown_table
from catekv.files import claim_folder, write_atomically
from experiments.cokv.masked_heads import ORDERS, default_counts, masking_curve, masks_of
from experiments.cokv.predictions import short_name
from experiments.cokv.shared import load_scores, main, open_model, parser


def mask(arguments: argparse.Namespace) -> int:
    model = open_model(arguments)
    scorer = CoalitionScorer(model, batch_size=arguments.batch_size)
    players = scorer.layers * scorer.kv_heads
    counts = integers("--counts", arguments.counts) or default_counts(players)
    mine = next(arguments.output.glob("masking_*.json"), arguments.output / "masking_TASK.json")
    claim_folder(arguments.output, ("masking.md", "masking.png"), mine.name)
    curves: dict[str, dict[str, list[float]]] = {}
    for task in arguments.tasks:
        source = arguments.source or task
        file = load_scores(arguments.scores, source, model)
        test = find_split(arguments.split, task).build("test", model.tokenizer)[: arguments.limit]
        for used in {source, task}:
            refuse_overlap(load_scores(arguments.scores, used, model).recipe["sample_hashes"], test)
        trials = [Trial.of(sample, model.tokenizer, arguments.question) for sample in test]
        masks = masks_of(file.scores(), counts, arguments.random_draws)
        name = short_name(task) if source == task else f"{short_name(source)}-on-{short_name(task)}"
        with tqdm(total=len(trials), desc=name, disable=arguments.quiet) as bar:
            curves[name] = masking_curve(scorer, trials, masks, bar.update)
        path = arguments.output / f"masking_{name}.json"
        write_atomically(path, json.dumps({"counts": counts, "scores": curves[name]}) + "\n")
    table = {name: _points(curve, counts) for name, curve in curves.items()}
    write_atomically(arguments.output / "masking.md", _markdown(table, counts) + "\n")
    print(_draw(table, counts, players, arguments.output / "masking.png"))
    print(arguments.output / "masking.md")
    return 0


def _points(curve: dict[str, list[float]], counts: tuple[int, ...]) -> dict[str, list[Any]]:
    """Mean and interval by order, from no masked head to the largest count."""
    found: dict[str, list[Any]] = {}
    for order in ORDERS:
        points = [bootstrap_average({"": curve["full"]}, scale=SCORES)]
        for count in counts:
            parts = [
                values
                for label, values in curve.items()
                if label == f"{order}-{count}" or label.startswith(f"{order}-{count}-")
            ]
            merged = [sum(column) / len(column) for column in zip(*parts, strict=True)]
            points.append(bootstrap_average({"": merged}, scale=SCORES))
        found[order] = points
    found["window"] = [bootstrap_average({"": curve["window"]}, scale=SCORES)]
    return found


def _markdown(table: dict[str, dict[str, list[Any]]], counts: tuple[int, ...]) -> str:
    heads = ["0", *map(str, counts)]
    rows = []
    for name, points in table.items():
        for order in ORDERS:
            cells = [f"{100 * p.mean:.0f} ({100 * p.low:.0f}-{100 * p.high:.0f})"
                     for p in points[order]]  # fmt: skip
            every = points["window"][0]
            rows.append([name, order, *cells, f"{100 * every.mean:.0f}"])
    header = ["task", "masked", *(f"k={count}" for count in heads), "all"]
    return "Score in % with 95 % interval after masking exactly k heads.\n\n" + markdown_table(
        header, rows, left=(0, 1)
    )


def _draw(
    table: dict[str, dict[str, list[Any]]], counts: tuple[int, ...], players: int, path: Path
) -> Path:
    from matplotlib.figure import Figure

    columns = min(4, len(table))
    rows = -(-len(table) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, (name, points) in zip(axes, table.items(), strict=False):
        for order, colour in zip(ORDERS, ("#D55E00", "#0072B2", "#7F7F7F"), strict=True):
            means = [100 * point.mean for point in points[order]]
            low = [100 * point.low for point in points[order]]
            high = [100 * point.high for point in points[order]]
            axis.plot([0, *counts], means, marker=".", color=colour, label=order)
            axis.fill_between([0, *counts], low, high, color=colour, alpha=0.15)
        axis.set(title=name, xlabel=f"heads masked of {players}", ylabel="score", ylim=(-3, 103))
    for axis in axes[len(table) :]:
        axis.axis("off")
    axes[0].legend(fontsize=8)
    write_figure(path, figure, dpi=110)
    return path


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--scores", type=Path, required=True, help="folder of run_importance.sh")
    options.add_argument("--split", type=Path, required=True)
    options.add_argument("--source", help="task whose scores say which heads are masked")
    options.add_argument("--counts", nargs="+", default=[], metavar="K")
    options.add_argument("--random-draws", type=item_count, default=4)
    options.add_argument("--limit", type=item_count, help="test samples per task (default: all)")
    PROGRESS.add(options)
    main(options, mask)
