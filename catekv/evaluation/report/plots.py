"""The report's plots: scores with intervals, trade-offs, curves, stacked bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from catekv.evaluation.report.frontier import pareto_front
from catekv.evaluation.report.labels import Labels
from catekv.evaluation.report.pictures import FONT_SIZE, INK, Picture, drawing, text_width
from catekv.evaluation.report.styles import COLOURS, Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

WIDTH, HEIGHT = 440, 300
_ROW = 22
_BELOW_ROWS = 42
#: Up to so many methods get their names beside their marks.
CROWD = 10


@dataclass(frozen=True)
class Point:
    """One method: a cost and a score with its interval.

    Points of one ``series`` are the same method at several sizes: they look alike, and trade-offs
    join them by a line.
    """

    name: str
    cost: float
    score: float
    low: float
    high: float
    series: str

    @property
    def tip(self) -> str:
        """Name, score and interval in words."""
        return f"{self.name}: {self.score:.1f} ({self.low:.1f} .. {self.high:.1f})"


def _number(axis: Axis, label: Callable[[float], str] = "{:g}".format) -> None:
    """A few round numbers along an axis."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(lambda value, _: label(value))


def _with_legend(
    entries: Sequence[tuple[str, Style]], title: str, height: float = HEIGHT
) -> tuple[Picture, float]:
    """An empty picture with marks and their names in columns at its foot, and their height."""
    from matplotlib.lines import Line2D

    column = max(text_width(name) for name, _ in entries) + 30
    columns = max(1, int(WIDTH // column))
    foot = 18.0 * math.ceil(len(entries) / columns) + 10
    picture = Picture.of(WIDTH, height + foot, title)
    picture.figure.legend(
        [Line2D([], [], **style.marker) for _, style in entries],
        [name for name, _ in entries],
        loc="lower left", ncols=columns, borderpad=0.3, labelspacing=0.4, handletextpad=0.2,
        handlelength=1.5, columnspacing=1.0,
    )  # fmt: skip
    return picture, foot


def _rows(
    names: Sequence[str], title: str, right: float, entries: Sequence[tuple[str, Style]] = ()
) -> tuple[Picture, Axes]:
    """A line per name, from the top; names that are too long show whole under the pointer."""
    left = min(210.0, 14 + max(map(text_width, names), default=0.0))
    height = _ROW * len(names) + _BELOW_ROWS + 8
    if entries:
        picture, foot = _with_legend(entries, title, height)
    else:
        picture, foot = Picture.of(WIDTH, height, title), 0.0
    axes = picture.axes(left, _BELOW_ROWS + foot, right, 8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks([])
    letters = int(left / text_width("m")) + 1
    for row, name in enumerate(names):
        shown = name if len(name) <= letters else f"{name[: letters - 1]}…"
        label = axes.annotate(
            shown, (0, row), xycoords=("figure fraction", "data"), va="center_baseline"
        )
        if shown != name:
            picture.tip(label, name)
    return picture, axes


@drawing
def intervals(points: Sequence[Point], style: Mapping[str, Style], title: str) -> Picture:
    """One line per method: mean and interval of a score from 0 to 100; the cost is not shown."""
    picture, axes = _rows([point.name for point in points], title, right=52)
    axes.set_xlim(0, 100)
    _number(axes.xaxis)
    axes.set_xlabel("score x 100, mean and 95 % interval")
    for row, point in enumerate(points):
        look = style[point.name]
        axes.plot([point.low, point.high], [row, row], color=look.colour, linewidth=2, marker="|",
                  markersize=8, markeredgewidth=2, clip_on=False)  # fmt: skip
        (mark,) = axes.plot(point.score, row, clip_on=False, **look.marker)
        picture.tip(mark, point.tip)
        axes.annotate(f"{point.score:.1f}", (1, row), (-2, 0), textcoords="offset points",
                      xycoords=("figure fraction", "data"), ha="right",
                      va="center_baseline")  # fmt: skip
    return picture


@drawing
def trade_off(
    points: Sequence[Point],
    style: Mapping[str, Style],
    title: str,
    cost_title: str,
    cost_label: Callable[[float], str] = "{:g}".format,
) -> Picture:
    """Score against cost; what nothing beats is joined by a dashed line and named in the picture.

    Args:
        points: at least one.
    """
    series: dict[str, list[Point]] = {}
    for point in points:
        series.setdefault(point.series, []).append(point)
    looks = [(name, style[line[0].name]) for name, line in series.items()]
    picture, foot = _with_legend(looks, title)
    axes = picture.axes(46, 44 + foot, 14, 14)
    axes.set_xlim(0, 1.08 * max(point.cost for point in points) or 1.0)
    axes.set_ylim(_floor(point.low for point in points), 100)
    axes.set(xlabel=cost_title, ylabel="score x 100")
    _number(axes.xaxis, cost_label)
    _number(axes.yaxis)
    front = pareto_front([(point.cost, point.score) for point in points])
    best = [points[position] for position in front]
    axes.plot([p.cost for p in best], [p.score for p in best], color=INK, linewidth=1,
              dashes=(5, 4))  # fmt: skip
    for line in (sorted(line, key=lambda point: point.cost) for line in series.values()):
        if len(line) > 1:
            axes.plot([p.cost for p in line], [p.score for p in line], linewidth=1, alpha=0.6,
                      color=style[line[0].name].colour)  # fmt: skip
    labels = Labels(picture, axes)
    for point in points:
        look = style[point.name]
        axes.plot([point.cost] * 2, [point.low, point.high], color=look.colour, linewidth=1,
                  alpha=0.5)  # fmt: skip
        (mark,) = axes.plot(point.cost, point.score, clip_on=False, **look.marker)
        picture.tip(mark, f"{point.tip}, {cost_label(point.cost)}")
        labels.keep_free(point.cost, point.score)
    few = len(points) <= CROWD
    for point in best:
        # among many methods a name that would cover others is left to the caption
        labels.write(point.cost, point.score, point.name, needed=few)
    for position, point in enumerate(points):
        if position not in front and few:
            labels.write(point.cost, point.score, point.name, needed=False)
    return picture


def _floor(lows: Iterable[float]) -> float:
    """Lower end of a score axis: 0, or a round number up to 80 where all scores are high."""
    least = min(lows)
    return 0.0 if least < 40 else min(80.0, 20.0 * math.floor(least / 20))


@drawing
def curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    style: Mapping[str, Style],
    title: str,
    y_title: str,
    *,
    y_range: tuple[float, float] | None = None,
    y_label: Callable[[float], str] = "{:g}".format,
) -> Picture:
    """Values over lengths in tokens, the lengths on a logarithmic scale.

    Args:
        series: name to its (length, value) pairs, lengths above 0.
        y_range: ends of the value axis; None: from 0 to a little above the greatest value.
    """
    lengths = sorted({x for line in series.values() for x, _ in line})
    greatest = max(y for line in series.values() for _, y in line)
    picture, foot = _with_legend([(name, style[name]) for name in series], title)
    axes = picture.axes(52, 44 + foot, 24, 14)
    axes.set_xscale("log")
    # a single length stands in the middle
    pad = 1.0 if len(lengths) > 1 else 2.0
    axes.set_xlim(lengths[0] / pad, lengths[-1] * pad)
    axes.set_ylim(y_range or (0.0, 1.08 * greatest or 1.0))
    axes.set(xlabel="prompt tokens", ylabel=y_title)
    shown = _apart(axes, lengths)
    axes.set_xticks(shown, [short_length(length) for length in shown])
    axes.set_xticks([], minor=True)
    _number(axes.yaxis, y_label)
    for name, line in series.items():
        ordered = sorted(line)
        axes.plot(*zip(*ordered, strict=True), color=style[name].colour, linewidth=2)
        for x, y in ordered:
            (mark,) = axes.plot(x, y, clip_on=False, **style[name].marker)
            picture.tip(mark, f"{name}: {y_label(round(y, 3))} at {short_length(x)} tokens")
    return picture


@drawing
def over_share(
    series: Mapping[str, Sequence[Point]], style: Mapping[str, Style], title: str, y_title: str
) -> Picture:
    """Values with intervals over the kept share of the memory, their cost in percent.

    Args:
        series: name to its points, at least one. Values are 0 at least and of any size.
    """
    points = [point for line in series.values() for point in line]
    picture, foot = _with_legend([(name, style[name]) for name in series], title)
    axes = picture.axes(58, 44 + foot, 14, 14)
    axes.set_xlim(0, 1.04 * max(100.0, *(point.cost for point in points)))
    axes.set_ylim(min(0.0, *(point.low for point in points)),
                  1.06 * max(point.high for point in points) or 1.0)  # fmt: skip
    axes.set(xlabel="kept share of the context's entries, %", ylabel=y_title)
    _number(axes.xaxis)
    _number(axes.yaxis)
    for name, line in series.items():
        look, ordered = style[name], sorted(line, key=lambda point: point.cost)
        axes.plot([p.cost for p in ordered], [p.score for p in ordered], color=look.colour,
                  linewidth=2)  # fmt: skip
        for point in ordered:
            axes.plot([point.cost] * 2, [point.low, point.high], color=look.colour, linewidth=1,
                      alpha=0.5)  # fmt: skip
            (mark,) = axes.plot(point.cost, point.score, clip_on=False, **look.marker)
            picture.tip(mark, f"{point.name}: {point.score:.3g} ({point.low:.3g} .. "
                              f"{point.high:.3g}) at {point.cost:.1f} %")  # fmt: skip
    return picture


def _apart(axes: Axes, values: Sequence[float]) -> list[float]:
    """Those of the values whose numbers do not touch below the axis."""
    kept: list[float] = []
    last = -math.inf
    for value in values:
        place, _ = axes.transData.transform((value, 0.0))
        if place - last >= 40:
            kept.append(value)
            last = place
    return kept


def short_length(tokens: float) -> str:
    """4096 as 4K, 1000000 as 1M where nothing is lost, other numbers as they are."""
    for unit, letter in ((1024 * 1024, "M"), (1024, "K")):
        if tokens >= unit and tokens % unit == 0:
            return f"{tokens / unit:g}{letter}"
    return f"{tokens:g}"


@drawing
def stacked_bars(
    rows: Mapping[str, Sequence[float]], parts: Sequence[str], title: str, x_title: str
) -> Picture:
    """A bar per row made of parts behind each other; parts have colours and names below."""
    entries = [(part, Style(COLOURS[number], "square")) for number, part in enumerate(parts)]
    picture, axes = _rows(list(rows), title, 20, entries)
    axes.set_xlim(0, 1.12 * max(sum(values) for values in rows.values()) or 1.0)
    _number(axes.xaxis)
    axes.set_xlabel(x_title)
    for row, values in enumerate(rows.values()):
        start = 0.0
        for number, value in enumerate(values):
            (bar,) = axes.barh(row, value, 14 / _ROW, left=start, color=COLOURS[number])
            picture.tip(bar, f"{parts[number]}: {value:.3g}")
            start += value
        axes.annotate(f"{start:.3g}", (start, row), (4, 0), textcoords="offset points",
                      va="center_baseline", fontsize=FONT_SIZE)  # fmt: skip
    return picture
