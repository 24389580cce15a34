"""Draw the README's picture: scores against memory, from the tables in docs/results."""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from catekv.evaluation.figure_files import write_figure
from catekv.evaluation.report.styles import COLOURS

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
METHODS = ("catekv-chosen", "catekv-random-0", "adakv", "snapkv", "streaming_llm", "h2o")
#: method -> (kept share, score), each times 100
Points = dict[str, list[tuple[float, float]]]


def rows_of(pattern: str, share: str, score: str) -> Points:
    """Means of every method in every table that matches: columns ``share`` and ``score``."""
    points: Points = defaultdict(list)
    for path in sorted(RESULTS.glob(pattern)):
        found: dict[str, list[tuple[float, float]]] = defaultdict(list)
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["method"] in METHODS and row.get("task") != "average":
                    found[row["method"]].append((float(row[share]), float(row[score])))
        for method in METHODS:
            shares, scores = zip(*found[method], strict=True)
            points[method].append((100 * fmean(shares), fmean(scores)))
    return {method: sorted(found) for method, found in points.items()}


def panel(axis: Any, points: Points, full: float, title: str) -> None:
    """Curves of one model; ``full`` is the score of the whole cache."""
    axis.axhline(full, ls="--", lw=1, color="black", label="full")
    for number, (method, found) in enumerate(points.items()):
        shares, scores = zip(*found, strict=True)
        style: dict[str, Any] = (
            {"lw": 2.5, "ms": 7} if method == "catekv-chosen" else {"lw": 1.3, "ms": 5}
        )
        name = method.replace("-chosen", "").replace("catekv-random-0", "random heads")
        style |= {"marker": "osv^DX"[number], "color": COLOURS[number]}
        axis.plot(shares, scores, label=name, **style)
    axis.set(title=title, xlabel="entries kept (%)", ylim=(-3, 103))
    axis.grid(alpha=0.25)


def main() -> int:
    """Write ``docs/images/score_against_memory.png``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    embedded = rows_of("embedded_baselines/*-agnostic/summary.csv", "kept_share", "official_mean")
    panel(left, embedded, 96.0, "embedded model, 9 RULER tasks, 1024 tokens")
    real = rows_of("smollm2/needles-*-after/scores.csv", "kept_share", "official")
    real = {name: [(x, 100 * y) for x, y in found] for name, found in real.items()}
    panel(right, real, 100.0, "SmolLM2-135M, one needle, 1024 tokens")
    left.set_ylabel("score (%)")
    names = left.get_legend_handles_labels()
    figure.legend(*names, loc="outside lower center", ncols=7, fontsize=8)
    print(write_figure(RESULTS.parent / "images" / "score_against_memory.png", figure, dpi=110))
    return 0


if __name__ == "__main__":
    sys.exit(main())
