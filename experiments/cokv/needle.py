"""Needle test: heads are scored on a coarse grid of lengths, methods tested on a fine one.

The needle score is the share of the expected words among the answer's first words, as published.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from shared import add_probe_options, head_scores, main, model_name, open_model, parser
from tqdm import tqdm

from catekv import tasks
from catekv.cli import integers
from catekv.cokv.comparison import COMPARED, compare_methods, compared_method
from catekv.cokv.files import ScoreFile
from catekv.cokv.scoring import Settings, score
from catekv.cokv.split import refuse_overlap
from catekv.cokv.tuning import ALPHA_FILE, tune
from catekv.tasks.niah.grid import Grid, grid_of
from catekv.tasks.sample import Sample

#: Scored and tested samples never share a draw.
SCORED, TESTED = "cokv-needle-scored", "test"


def overlap(answer: str, expected: str) -> float:
    """Share of the expected words among as many first words of the answer."""
    wanted = expected.lower().split()
    given = answer.lower().split()[: len(wanted)]
    return len(set(wanted) & set(given)) / len(set(wanted))


def needle(arguments: argparse.Namespace) -> int:
    model = open_model(arguments)
    capacities = integers("--capacities", arguments.capacities)
    build = {"depths": arguments.depths}

    def samples(lengths: tuple[int, ...], stream: str) -> list[Sample]:
        return [
            sample
            for length in lengths
            for sample in tasks.build(
                "niah", model.tokenizer, length, arguments.depths, arguments.seed,
                stream=stream, **build,
            )
        ]  # fmt: skip

    validation = samples(integers("--scored", arguments.scored), SCORED)
    test = samples(integers("--lengths", arguments.lengths), TESTED)
    settings = Settings(
        seed=arguments.seed, max_draws=arguments.max_draws, question=arguments.question
    )
    origin = {"model": model_name(arguments), "stream": SCORED}
    folder = arguments.output / "scores"
    batch = arguments.batch_size
    outcome = score(model, validation, folder, settings, batch_size=batch, origin=origin)
    assert outcome.path is not None
    file = ScoreFile.load(outcome.path)
    refuse_overlap(file.recipe["sample_hashes"], test)
    tuned = tune(
        model, file, validation, capacities, integers("--alphas", arguments.alphas),
        batch_size=batch,
    )  # fmt: skip
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
    grids = {}
    for name, found in answers.items():
        rows = [
            (sample.target_length, 100 * sample.depths[0],
             overlap(answer.text, " ".join(sample.outputs)))
            for sample, answer in zip(test, found, strict=True)
        ]  # fmt: skip
        grids[name] = grid_of((row[0], float(sample.metadata["depth"]), row[2])
                              for row, sample in zip(rows, test, strict=True))  # fmt: skip
        (arguments.output / f"needle_{name}.json").write_text(json.dumps(rows) + "\n")
    lines = ["| run | mean needle score |", "|---|---|"]
    lines += [f"| {name} | {100 * grid.mean:.1f} |" for name, grid in grids.items()]
    (arguments.output / "needle.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    print(_draw(grids, arguments.output / "needle.png"))
    return 0


def _draw(grids: dict[str, Grid], path: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(len(grids), 1 + len(COMPARED))
    rows = -(-len(grids) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, (name, grid) in zip(axes, grids.items(), strict=False):
        means = [[float("nan") if one is None else one for one in row] for row in grid.means]
        axis.imshow(means, aspect="auto", cmap="RdYlGn", vmin=0, vmax=1)
        axis.set_title(f"{name}: {100 * grid.mean:.0f}", fontsize=8)
        axis.set_xticks(range(len(grid.lengths)), grid.lengths, fontsize=6, rotation=90)
        axis.set_yticks(range(len(grid.depths)), [f"{d:.0f}" for d in grid.depths], fontsize=6)
    for axis in axes[len(grids) :]:
        axis.axis("off")
    figure.supxlabel("tokens", fontsize=8)
    figure.supylabel("depth %", fontsize=8)
    figure.savefig(path, dpi=110)
    return path


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--scored", nargs="+", required=True, help="lengths to score heads at")
    options.add_argument("--lengths", nargs="+", required=True, help="lengths to test at")
    options.add_argument("--depths", type=int, default=10)
    options.add_argument("--capacities", nargs="+", required=True, metavar="TOKENS")
    options.add_argument("--alphas", nargs="+", default=[], metavar="N")
    options.add_argument("--methods", nargs="+", default=list(COMPARED), metavar="METHOD")
    options.add_argument("--max-draws", type=int, default=500)
    add_probe_options(options)
    main(options, needle)
