"""Pictures and correlations of the importance of heads for several tasks."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from catekv.calibration.cokv.display import correlation, draw_scores, rank_correlation
from catekv.errors import UserError
from catekv.evaluation.figure_files import write_figure
from catekv.evaluation.report.styles import COLOURS
from catekv.evaluation.tables import markdown_table
from catekv.files import claim_folder, read_text, write_atomically
from experiments.cokv.predictions import short_name
from experiments.cokv.shared import load_scores, main, model_name, open_model, parser


def importance(arguments: argparse.Namespace) -> int:
    model = open_model(arguments)
    files = {task: load_scores(arguments.scores, task, model) for task in arguments.tasks}
    tables = {short_name(task): file.scores() for task, file in files.items()}
    claim_folder(arguments.output, ("importance.md",), "importance.png")
    title = f"Importance of the heads of {model_name(arguments)}"
    for start in range(0, len(tables), 8):
        part = dict(list(tables.items())[start : start + 8])
        suffix = f"-{start // 8 + 1}" if len(tables) > 8 else ""
        print(draw_scores(arguments.output / f"importance{suffix}.png", part, title))
    lines = ["# Importance of heads: correlation between tasks", ""]
    lines += ["Pearson, and Spearman of the ranks below the diagonal.", ""]
    names = list(tables)
    body = []
    for row, name in enumerate(names):
        cells = []
        for column, other in enumerate(names):
            measure = rank_correlation if column < row else correlation
            cells.append(f"{measure(tables[name], tables[other]):.2f}")
        body.append([name, *cells])
    lines += [markdown_table(["", *names], body), ""]
    body = []
    for task, file in files.items():
        recipe, table = file.recipe, file.scores()
        best = np.argsort(-table, axis=None, kind="stable")[:3]
        heads = ", ".join(f"{p // file.kv_heads}.{p % file.kv_heads}" for p in best)
        body.append(
            [
                short_name(task),
                str(len(recipe["sample_hashes"])),
                str(recipe["draws"]),
                f"{recipe['mae']:.4f}",
                f"{100 * recipe['utility_full']:.1f}",
                f"{100 * recipe['utility_window']:.1f}",
                heads,
            ]
        )
    header = ["task", "samples", "draws", "MAE", "full", "window only", "best heads"]
    lines.append(markdown_table(header, body, left=(0, -1)))
    path = arguments.output / "importance.md"
    write_atomically(path, "\n".join(lines) + "\n")
    print(_course(arguments.scores, list(files), arguments.output / "mae.png"))
    print(path)
    return 0


def _course(scores: Path, tasks: list[str], path: Path) -> Path:
    """The difference of the two runs against the draws."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    axis.set_prop_cycle(color=COLOURS)
    for task in tasks:
        course = scores / short_name(task) / "mae.csv"
        try:
            lines = read_text(course).splitlines()
            rows = np.genfromtxt(lines, delimiter=",", names=True, ndmin=1)
            columns = {name: rows[name] for name in ("draws", "mae", "tolerance")}
        except (ValueError, IndexError) as error:
            raise UserError(f"{course} is no course of scores ({error}); score again") from error
        axis.plot(columns["draws"], columns["mae"], marker=".", lw=1, label=short_name(task))
    axis.axhline(columns["tolerance"][-1], color="black", ls="--", lw=1, label="stop below")
    axis.set(xlabel="draws per slice and run", ylabel="MAE of two runs", yscale="log")
    axis.legend(fontsize=7, ncols=2)
    write_figure(path, figure, dpi=120)
    return path


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--scores", type=Path, required=True)
    main(options, importance)
