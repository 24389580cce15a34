"""``report.html``: a summary's tables with two plots per length and question mode, in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_COLOURS = (
    "#1b6ca8", "#d1495b", "#3a7d44", "#8e5ea2", "#c77d11", "#4a4e69", "#2a9d8f", "#9c6644",
)  # fmt: skip
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; color: #222;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
.wide { overflow-x: auto; } figure { margin: 1rem 0; display: inline-block; }
figcaption { color: #555; font-size: .9rem; } p { color: #444; }
"""
_BAR_HEIGHT = 24
_PLOT_WIDTH = 620
_LABEL_WIDTH = 190
_SCATTER_HEIGHT = 320
_SCATTER_MARGIN = 46


def page(title: str, sections: Sequence[str], notes: str) -> str:
    """A complete page from sections of HTML."""
    lines = "".join(f"<p>{escape(line)}</p>" for line in notes.splitlines())
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{''.join(sections)}{lines}\n</body>\n</html>\n"
    )


def section(
    title: str,
    averages: Sequence[Mapping[str, Any]],
    score_table: tuple[Sequence[str], Sequence[Sequence[str]]],
    method_table: tuple[Sequence[str], Sequence[Sequence[str]]],
) -> str:
    """One length and question mode: bars of the scores, score against memory, both tables."""
    return (
        f"<h2>{escape(title)}</h2>\n"
        f"<figure>{_bars(averages)}<figcaption>average score with its 95 % interval"
        "</figcaption></figure>\n"
        f"<figure>{_scatter(averages)}<figcaption>average score against tokens kept"
        "</figcaption></figure>\n"
        f"{table(*score_table)}{table(*method_table)}"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table that scrolls on its own where it is too wide."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows
    )
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{body}</table></div>\n'


def _scored(averages: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Methods that have a score, each with its colour."""
    return [
        (_COLOURS[position % len(_COLOURS)], row)
        for position, row in enumerate(averages)
        if row["official"] is not None
    ]


def _bars(averages: Sequence[Mapping[str, Any]]) -> str:
    rows = _scored(averages)
    span = _PLOT_WIDTH - _LABEL_WIDTH - 60
    parts = []
    for position, (colour, row) in enumerate(rows):
        estimate = row["official"]
        top = position * _BAR_HEIGHT
        middle = top + _BAR_HEIGHT / 2
        low, mean, high = (
            _LABEL_WIDTH + span * estimate[name] / 100 for name in ("low", "mean", "high")
        )
        parts.append(
            f'<text x="0" y="{middle + 4}">{escape(row["method"])}</text>'
            f'<rect x="{_LABEL_WIDTH}" y="{top + 4}" width="{mean - _LABEL_WIDTH:.1f}" '
            f'height="{_BAR_HEIGHT - 8}" fill="{colour}" fill-opacity="0.75"/>'
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}" stroke="#222"/>'
            f'<text x="{max(mean, high) + 6:.1f}" y="{middle + 4}">{estimate["mean"]:.1f}</text>'
        )
    return _svg(_PLOT_WIDTH, max(1, len(rows)) * _BAR_HEIGHT, parts)


def _scatter(averages: Sequence[Mapping[str, Any]]) -> str:
    margin = _SCATTER_MARGIN
    width, height = _PLOT_WIDTH, _SCATTER_HEIGHT
    across, up = width - 2 * margin - 80, height - 2 * margin

    def x(share: float) -> float:
        return margin + across * share

    def y(score: float) -> float:
        return height - margin - up * score / 100

    parts = []
    for tick in range(0, 101, 25):
        parts.append(
            f'<line x1="{margin}" x2="{margin + across}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" '
            f'stroke="#e3e3e3"/><text x="{margin - 8}" y="{y(tick) + 4:.1f}" '
            f'text-anchor="end">{tick}</text>'
            f'<text x="{x(tick / 100):.1f}" y="{height - margin + 18}" '
            f'text-anchor="middle">{tick}%</text>'
        )
    for colour, row in _scored(averages):
        if row["kept_share"] is None:
            continue
        score = row["official"]["mean"]
        parts.append(
            f'<circle cx="{x(row["kept_share"]):.1f}" cy="{y(score):.1f}" r="5" fill="{colour}"/>'
            f'<text x="{x(row["kept_share"]) + 8:.1f}" y="{y(score) + 4:.1f}" '
            f'fill="{colour}">{escape(row["method"])}</text>'
        )
    return _svg(width, height, parts)


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif" font-size="12">'
        f"{''.join(parts)}</svg>"
    )
