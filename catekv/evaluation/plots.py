"""Pictures of the analyses and sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from catekv.evaluation.figure_files import write_figure
from catekv.evaluation.report.styles import COLOURS


def _figure(width: float = 6.4, height: float = 4.8) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure


def histogram(path: Path, counts: Tensor, title: str) -> None:
    """Attention weights by size, counts on a log axis."""
    figure = _figure()
    axis = figure.subplots()
    width = 1 / len(counts)
    axis.bar([(index + 0.5) * width for index in range(len(counts))], counts.tolist(), width)
    axis.set(yscale="log", xlabel="attention weight", ylabel="number of weights", title=title)
    write_figure(path, figure)


def heat_map(
    path: Path, values: Tensor, title: str, *, tokens: int, prompt: int, label: str,
    low: float | None = None, high: float | None = None, logarithmic: bool = False,
) -> None:  # fmt: skip
    """A map over positions; where ``prompt`` ends before ``tokens`` a line is drawn."""
    from matplotlib.colors import LogNorm

    figure = _figure(6.4, 5.4)
    axis = figure.subplots()
    scale: dict[str, Any] = {"vmin": low, "vmax": high}
    if logarithmic:
        scale = {"norm": LogNorm(1e-5, 1.0, clip=True)}
    picture = values.numpy()
    image = axis.imshow(picture, extent=(0, tokens, tokens, 0), interpolation="nearest", **scale)
    figure.colorbar(image, ax=axis, label=label)
    if prompt < tokens:
        axis.axvline(prompt, color="white", lw=0.8)
        axis.axhline(prompt, color="white", lw=0.8)
    axis.set(title=title, xlabel="position", ylabel="position")
    write_figure(path, figure)


def lines(
    path: Path,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    title: str,
    x: str,
    y: str,
    level: tuple[float, str] | None = None,
) -> None:
    """Curves by name; ``level`` is a dashed line with its name."""
    figure = _figure()
    axis = figure.subplots()
    axis.set_prop_cycle(color=COLOURS)
    for name, (places, values) in curves.items():
        axis.plot(places, values, marker="o", ms=3, label=name)
    if level is not None:
        axis.axhline(level[0], ls="--", color="black", lw=1, label=level[1])
    axis.set(title=title, xlabel=x, ylabel=y)
    axis.legend(fontsize=8)
    write_figure(path, figure)


def bands(
    path: Path,
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, float, float]]]],
    x: str,
    y: str,
) -> None:
    """Per panel and curve the points (place, quartile, median, quartile), on a log axis."""
    figure = _figure(4.2 * len(panels), 4.2)
    for axis, (title, curves) in zip(
        figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels.items(), strict=True
    ):
        axis.set_prop_cycle(color=COLOURS)
        for name, points in curves.items():
            places, low, middle, high = zip(*points, strict=True)
            (line,) = axis.plot(places, middle, marker="o", ms=3, label=name)
            axis.fill_between(places, low, high, color=line.get_color(), alpha=0.15)
        axis.set(title=title, xlabel=x, yscale="log")
        axis.set_ylabel(y)
    figure.axes[0].legend(fontsize=8)
    write_figure(path, figure)
