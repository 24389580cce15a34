"""Scores in words and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from catekv.calibration.cokv.files import ScoreFile
from catekv.calibration.cokv.game import Floats
from catekv.errors import UserError
from catekv.evaluation.figure_files import write_figure

#: Shown of a score file: so many best and worst heads.
_SHOWN_HEADS = 5


def describe(file: ScoreFile, use: str = "both") -> str:
    """A score file in lines of text: origin, slices, agreement and the table of scores."""
    values = file.scores(use)
    recipe = file.recipe
    lines = [
        f"model    {recipe.get('model', 'unknown')}, task {recipe.get('task', 'unknown')}, "
        f"{len(recipe.get('sample_hashes', []))} validation samples",
        f"players  {values.size} ({file.layers} layers x {file.kv_heads} KV heads), "
        f"slices {', '.join(map(str, file.slices))}, {file.draws} draws",
    ]
    agreement = file.agreement(recipe.get("tolerance"), use)
    if agreement is not None:
        word = "below" if agreement.reached else "NOT below"
        lines.append(f"MAE      {agreement.error:.4g}, {word} {agreement.tolerance:.4g}")
    if "utility_full" in recipe:
        lines.append(
            f"utility  {recipe['utility_full']:.3f} with all heads, "
            f"{recipe['utility_window']:.3f} with the window only"
        )
    for place, (size, part) in enumerate(zip(file.slices, file.estimates(use), strict=True)):
        least = min(int(run[place].left_count.min()) for run in file.runs)
        lines.append(
            f"slice {size:<3}  mean {part.mean():+.4f}, deviation {part.std():.4f}, "
            f"every head in at least {least} coalitions of a run"
        )
    order = np.argsort(-values, axis=None, kind="stable").tolist()
    lines.append("best     " + _heads(order[:_SHOWN_HEADS], values))
    lines.append("worst    " + _heads(order[::-1][:_SHOWN_HEADS], values))
    lines.append("")
    lines += [
        f"layer {layer:>3}  " + " ".join(f"{value:+.4f}" for value in row)
        for layer, row in enumerate(values)
    ]
    return "\n".join(lines)


def _heads(players: Sequence[int], values: Floats) -> str:
    heads = values.shape[1]
    return ", ".join(f"{p // heads}.{p % heads} ({values.flat[p]:+.4f})" for p in players)


def rank_correlation(first: Floats, second: Floats) -> float:
    """Spearman's correlation of two score tables; ties share their mean rank. NaN if one of them
    is constant."""
    return correlation(_ranks(first), _ranks(second))


def _ranks(values: Floats) -> Floats:
    _, place, counts = np.unique(values.ravel(), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Floats = (last - (counts - 1) / 2)[place]
    return ranks


def correlation(first: Floats, second: Floats) -> float:
    """Pearson's correlation of two score tables of one model; NaN if one of them is constant.

    Raises:
        UserError: tables of other shapes.
    """
    if first.shape != second.shape:
        raise UserError(
            f"scores of {list(first.shape)} and {list(second.shape)} layers and heads cannot be "
            "compared; use scores of one model"
        )
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def draw_scores(path: str | Path, tables: Mapping[str, Floats], title: str = "") -> Path:
    """One heat map [layers, kv_heads] per table, all on one scale; PNG or SVG by the suffix.

    Shown is the difference to a table's mean: what all heads share moves no budget.
    """
    from matplotlib.figure import Figure

    centred = {name: table - table.mean() for name, table in tables.items()}
    largest = max(float(np.abs(table).max()) for table in centred.values()) or 1.0
    layers, heads = next(iter(tables.values())).shape
    size = (max(2.2, 1.2 + 0.3 * heads) * len(tables) + 0.8, min(14.0, 1.8 + 0.28 * layers))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(tables), squeeze=False)[0]
    for axis, (name, table) in zip(axes, centred.items(), strict=True):
        image = axis.imshow(table, aspect="auto", cmap="RdBu_r", vmin=-largest, vmax=largest)
        axis.set(title=name, xlabel="KV head", ylabel="layer")
        axis.set_xticks(range(0, heads, max(1, heads // 8)))
        axis.set_yticks(range(0, layers, max(1, layers // 16)))
    figure.colorbar(image, ax=axes, label="score less its mean")
    figure.suptitle(title)
    return write_figure(path, figure)
