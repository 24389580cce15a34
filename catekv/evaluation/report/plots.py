"""The report's plots: scores with intervals, trade-offs, curves, stacked bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from catekv.evaluation.report.frontier import pareto_front
from catekv.evaluation.report.svg import (
    COLOURS,
    Axes,
    Style,
    drawing,
    element,
    legend,
    marker,
    text,
    text_width,
    ticks,
)

WIDTH = 440
_ROW = 22
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


def intervals(points: Sequence[Point], style: Mapping[str, Style], title: str) -> str:
    """One line per method: mean and interval of a score from 0 to 100; the cost is not shown."""
    left = min(210.0, 14 + max((text_width(p.name) for p in points), default=0))
    height = _ROW * len(points) + 50
    axes = Axes((0, 100), (0, 1), height=height, left=left, right=52, top=8)
    axes.frame("score x 100, mean and 95 % interval", "", ticks(0, 100), [])
    parts = []
    for row, point in enumerate(points):
        y = axes.top + _ROW * (row + 0.5)
        name = element("text", _clip(point.name, left), x=0, y=y + 4, fill="currentColor")
        parts += [
            name,
            _bar(axes.x(point.low), axes.x(point.high), y, style[point.name].colour),
            marker(axes.x(point.score), y, style[point.name], _tip(point)),
            text(axes.width - 2, y + 4, f"{point.score:.1f}", text_anchor="end"),
        ]
    return drawing(WIDTH, height, title, [*axes.parts, *parts])


def _clip(name: str, width: float) -> str:
    letters = int(width / text_width("m")) + 1
    if len(name) <= letters:
        return escape(name)
    return f"{escape(name[: letters - 1])}…{element('title', escape(name))}"


def _bar(low: float, high: float, y: float, colour: str) -> str:
    corners = [(low, y - 4, low, y + 4), (high, y - 4, high, y + 4), (low, y, high, y)]
    return "".join(
        element("line", x1=a, y1=b, x2=c, y2=d, stroke=colour, stroke_width=2)
        for a, b, c, d in corners
    )


def _tip(point: Point) -> str:
    return f"{point.name}: {point.score:.1f} ({point.low:.1f} .. {point.high:.1f})"


def trade_off(
    points: Sequence[Point],
    style: Mapping[str, Style],
    title: str,
    cost_title: str,
    cost_label: Callable[[float], str] = "{:g}".format,
    *,
    greatest: float | None = None,
) -> str:
    """Score against cost; what nothing beats is joined by a dashed line and named in the picture.

    Args:
        points: at least one.
        greatest: right end of the cost axis; None: as the points need.
    """
    top = greatest or 1.08 * max(point.cost for point in points) or 1.0
    floor = _floor(point.low for point in points)
    axes = Axes((0, top), (floor, 100))
    axes.frame(cost_title, "score x 100", ticks(0, top), ticks(floor, 100), cost_label)
    front = pareto_front([(point.cost, point.score) for point in points])
    corners = " ".join(f"{axes.x(points[p].cost):.1f},{axes.y(points[p].score):.1f}" for p in front)
    axes.parts.append(
        element(
            "polyline", points=corners, fill="none", stroke="currentColor", stroke_dasharray="5 4"
        )
    )
    series: dict[str, list[Point]] = {}
    for point in points:
        series.setdefault(point.series, []).append(point)
    for own in (sorted(line, key=lambda one: one.cost) for line in series.values()):
        corners = " ".join(f"{axes.x(p.cost):.1f},{axes.y(p.score):.1f}" for p in own)
        if len(own) > 1:
            axes.parts.append(
                element(
                    "polyline", points=corners, fill="none", stroke=style[own[0].name].colour,
                    stroke_opacity="0.6",
                )
            )  # fmt: skip
    for point in points:
        x, y = axes.x(point.cost), axes.y(point.score)
        low, high = axes.y(point.low), axes.y(point.high)
        axes.parts += [
            element(
                "line", x1=x, x2=x, y1=low, y2=high, stroke=style[point.name].colour,
                stroke_opacity="0.5",
            ),
            marker(x, y, style[point.name], f"{_tip(point)}, {cost_label(point.cost)}"),
        ]  # fmt: skip
        axes.keep_free(x, y)
    for position in front:
        point = points[position]
        # among many methods a name that would cover others is left to the caption
        axes.label(axes.x(point.cost), axes.y(point.score), point.name, needed=len(points) <= CROWD)
    for position, point in enumerate(points):
        if position not in front and len(points) <= CROWD:
            axes.label(axes.x(point.cost), axes.y(point.score), point.name, needed=False)
    names = [(name, style[own[0].name]) for name, own in series.items()]
    shown, height = legend(names, WIDTH, axes.height + 6)
    return drawing(WIDTH, axes.height + 8 + height, title, [*axes.parts, shown])


def _floor(lows: Iterable[float]) -> float:
    """Lower end of a score axis: 0, or a round number up to 80 where all scores are high."""
    least = min(lows)
    return 0.0 if least < 40 else min(80.0, 20.0 * math.floor(least / 20))


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    style: Mapping[str, Style],
    title: str,
    y_title: str,
    *,
    y_range: tuple[float, float] | None = None,
    y_label: Callable[[float], str] = "{:g}".format,
) -> str:
    """Values over lengths in tokens, the lengths on a logarithmic scale.

    Args:
        series: name to its (length, value) pairs, lengths above 0.
        y_range: ends of the value axis; None: from 0 to a little above the greatest value.
    """
    lengths = sorted({x for line in series.values() for x, _ in line})
    greatest = max(y for line in series.values() for _, y in line)
    span = y_range or (0.0, 1.08 * greatest or 1.0)
    axes = Axes((lengths[0], lengths[-1]), span, logarithmic=True, right=24, left=52)
    axes.frame("prompt tokens", y_title, _apart(axes, lengths), ticks(*span), short_length, y_label)
    for name, line in series.items():
        ordered = sorted(line)
        corners = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in ordered)
        axes.parts.append(
            element(
                "polyline", points=corners, fill="none", stroke=style[name].colour, stroke_width=2
            )
        )
        for x, y in ordered:
            tip = f"{name}: {y_label(round(y, 3))} at {short_length(x)} tokens"
            axes.parts.append(marker(axes.x(x), axes.y(y), style[name], tip))
    shown, height = legend([(name, style[name]) for name in series], WIDTH, axes.height + 6)
    return drawing(WIDTH, axes.height + 8 + height, title, [*axes.parts, shown])


def _apart(axes: Axes, values: Sequence[float]) -> list[float]:
    """Those of the values whose numbers do not touch below the axis."""
    kept: list[float] = []
    for value in values:
        if not kept or axes.x(value) - axes.x(kept[-1]) >= 40:
            kept.append(value)
    return kept


def short_length(tokens: float) -> str:
    """4096 as 4K, 1000000 as 1M where nothing is lost, other numbers as they are."""
    for unit, letter in ((1024 * 1024, "M"), (1024, "K")):
        if tokens >= unit and tokens % unit == 0:
            return f"{tokens / unit:g}{letter}"
    return f"{tokens:g}"


def stacked_bars(
    rows: Mapping[str, Sequence[float]], parts: Sequence[str], title: str, x_title: str
) -> str:
    """A bar per row made of parts behind each other; parts have colours and names below."""
    left = min(200.0, 14 + max(text_width(name) for name in rows))
    height = _ROW * len(rows) + 50
    greatest = max(sum(values) for values in rows.values()) or 1.0
    axes = Axes((0, 1.12 * greatest), (0, 1), height=height, left=left, right=20, top=8)
    axes.frame(x_title, "", ticks(0, 1.12 * greatest), [])
    shapes = []
    for row, (name, values) in enumerate(rows.items()):
        y = axes.top + _ROW * (row + 0.5)
        shapes.append(element("text", _clip(name, left), x=0, y=y + 4, fill="currentColor"))
        start = 0.0
        for number, value in enumerate(values):
            x = axes.x(start)
            tip = element("title", f"{parts[number]}: {value:.3g}")
            shapes.append(
                element(
                    "rect", tip, x=x, y=y - 7, width=axes.x(start + value) - x, height=14,
                    fill=COLOURS[number],
                )
            )  # fmt: skip
            start += value
        shapes.append(text(axes.x(start) + 4, y + 4, f"{start:.3g}"))
    names = [(part, Style(COLOURS[number], "square")) for number, part in enumerate(parts)]
    shown, below = legend(names, WIDTH, height + 4)
    return drawing(WIDTH, height + 6 + below, title, [*axes.parts, *shapes, shown])
