"""Needle test: heads are scored on a coarse grid of lengths, methods tested on a fine one.

The needle score is the share of the expected words among the answer's first words, as published.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tqdm import tqdm

from catekv import tasks
from catekv.calibration.cokv.comparison import COMPARED, Answer, compare_methods, compared_method
from catekv.calibration.cokv.display import draw_scores
from catekv.calibration.cokv.files import ScoreFile
from catekv.calibration.cokv.scoring import Settings, score
from catekv.calibration.cokv.split import refuse_overlap
from catekv.calibration.cokv.tuning import ALPHA_FILE, tune
from catekv.commands.numbers import item_count
from catekv.commands.schema import Group, integers
from catekv.evaluation.figure_files import write_figure
from catekv.evaluation.tables import markdown_table
from catekv.files import claim_folder, write_atomically
from catekv.tasks.core.sample import Sample
from catekv.tasks.families.niah.grid import Grid, grid_of
from experiments.cokv.shared import (
    TUNING,
    add_probe_options,
    head_scores,
    main,
    model_identity,
    model_name,
    open_model,
    parser,
)

if TYPE_CHECKING:
    from catekv.model import CateKVModel

#: Scored and tested samples never share a draw.
SCORED, TESTED = "cokv-needle-scored", "test"


def overlap(answer: str, expected: str) -> float:
    """Share of the expected words among as many first words of the answer."""
    wanted = expected.lower().split()
    given = answer.lower().split()[: len(wanted)]
    return len(set(wanted) & set(given)) / len(set(wanted))


def grid_samples(
    model: CateKVModel, lengths: Sequence[int], depths: int, seed: int, stream: str
) -> list[Sample]:
    """One needle per length and depth."""
    found: list[Sample] = []
    for length in lengths:
        found += tasks.build(
            "niah", model.tokenizer, length, depths, seed, stream=stream, depths=depths
        )
    return found


def needle(arguments: argparse.Namespace) -> int:
    model = open_model(arguments)
    tuning = TUNING.values(arguments)
    capacities = tuning["capacities"]
    depths, seed, batch = arguments.depths, arguments.seed, arguments.batch_size
    scored, tested = (
        integers(option, words)
        for option, words in (("--scored", arguments.scored), ("--lengths", arguments.lengths))
    )
    validation = grid_samples(model, scored, depths, seed, SCORED)
    test = grid_samples(model, tested, depths, seed, TESTED)
    claim_folder(arguments.output, ("needle.md", "needle.png", "importance.png"), "scores")
    folder = arguments.output / "scores"
    outcome = score(
        model,
        validation,
        folder,
        Settings(seed=seed, max_draws=arguments.max_draws, question=arguments.question),
        batch_size=batch,
        origin={
            "model": model_name(arguments),
            "model_hash": model_identity(arguments, model),
            "stream": SCORED,
        },
    )
    assert outcome.path is not None
    file = ScoreFile.load(outcome.path)
    refuse_overlap(file.recipe["sample_hashes"], test)
    draw_scores(arguments.output / "importance.png", {"niah": file.scores()})
    tuned = tune(model, file, validation, capacities, tuning["alphas"], batch_size=batch)
    tuned.write(folder / ALPHA_FILE, task="niah")
    methods: dict[str, Any] = {"full": (compared_method("full", 0), None)}
    probed = head_scores(arguments, model)
    for capacity in capacities:
        options: dict[str, dict[str, Any]] = {
            "headkv": {"scores": str(probed)},
            "cokv": {"scores": file.estimates().tolist(), "alpha": tuned.best(capacity)},
        }
        for name in arguments.methods:
            method = compared_method(name, capacity, **options.get(name, {}))
            methods[f"{name}_{capacity}"] = method, capacity
    with tqdm(total=len(test), desc="niah") as bar:
        answers = compare_methods(
            model, test, methods, arguments.question, batch_size=batch, advance=bar.update
        )
    _write(arguments.output, test, answers)
    return 0


def _write(output: Path, test: Sequence[Sample], answers: Mapping[str, Sequence[Answer]]) -> None:
    """Rows of (length, depth in percent, score) per run, the means, and the heat maps."""
    grids = {}
    for name, found in answers.items():
        rows = [
            (
                sample.target_length,
                float(sample.metadata["depth"]),
                overlap(answer.text, " ".join(sample.outputs)),
            )
            for sample, answer in zip(test, found, strict=True)
        ]
        grids[name] = grid_of(rows)
        write_atomically(output / f"needle_{name}.json", json.dumps(rows) + "\n")
    means = [(name, f"{100 * grid.mean:.1f}") for name, grid in grids.items()]
    table = markdown_table(("run", "mean needle score"), means)
    write_atomically(output / "needle.md", table + "\n")
    print(table)
    print(_draw(grids, output / "needle.png"))


def _draw(grids: dict[str, Grid], path: Path) -> Path:
    from matplotlib.figure import Figure

    columns = min(len(grids), 1 + len(COMPARED))
    rows = -(-len(grids) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, (name, grid) in zip(axes, grids.items(), strict=False):
        means = [[float("nan") if one is None else one for one in row] for row in grid.means]
        axis.imshow(means, aspect="auto", cmap="cividis", vmin=0, vmax=1)
        axis.set_title(f"{name}: {100 * grid.mean:.0f}", fontsize=8)
        axis.set_xticks(range(len(grid.lengths)), grid.lengths, fontsize=6, rotation=90)
        axis.set_yticks(range(len(grid.depths)), [f"{d:.0f}" for d in grid.depths], fontsize=6)
    for axis in axes[len(grids) :]:
        axis.axis("off")
    figure.supxlabel("tokens", fontsize=8)
    figure.supylabel("depth %", fontsize=8)
    write_figure(path, figure, dpi=110)
    return path


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--scored", nargs="+", required=True, help="lengths to score heads at")
    options.add_argument("--lengths", nargs="+", required=True, help="lengths to test at")
    options.add_argument("--depths", type=item_count, default=10)
    TUNING.add(options)
    options.add_argument("--methods", nargs="+", default=list(COMPARED), metavar="METHOD")
    Group(Settings, ("max_draws",)).add(options)
    add_probe_options(options)
    main(options, needle)
