"""Colour and marker of every series, the same in all pictures of a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from catekv.evaluation.report.pictures import INK, PAPER

#: Colours that stay apart for all common kinds of colour vision: those of Okabe and Ito, violet in
#: the place of yellow, which is too light for lines. Shapes tell apart what has the same colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A4FCF")
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "down", "ring")
#: Of the reference, full attention: the page's own text colour.
REFERENCE_COLOUR = INK
#: Shape to matplotlib's marker and its size in pixels.
_MARKERS = {
    "circle": ("o", 10.0),
    "ring": ("o", 8.5),
    "square": ("s", 9.0),
    "triangle": ("^", 11.0),
    "down": ("v", 11.0),
    "diamond": ("D", 9.5),
    "cross": ("x", 10.0),
    "star": ("*", 15.0),
}


@dataclass(frozen=True)
class Style:
    """Colour and marker of one series."""

    colour: str
    shape: str

    @property
    def marker(self) -> dict[str, Any]:
        """How matplotlib draws it, without a line."""
        name, size = _MARKERS[self.shape]
        line = {"cross": 2.5, "ring": 2.5}.get(self.shape, 0.0)
        return {
            "linestyle": "none",
            "marker": name,
            "markersize": size,
            "markeredgewidth": line,
            "markeredgecolor": self.colour,
            "markerfacecolor": PAPER if self.shape == "ring" else self.colour,
        }


def styles(names: Sequence[str], reference: str | None = None) -> dict[str, Style]:
    """A style per name, all different up to 49 names; the reference gets one of its own."""
    found: dict[str, Style] = {}
    number = 0
    for name in names:
        if name == reference:
            found[name] = Style(REFERENCE_COLOUR, "star")
            continue
        count = len(COLOURS)
        # neighbours differ in both, so that either alone is enough for the first seven
        shape = SHAPES[(number + number // count) % len(SHAPES)]
        found[name] = Style(COLOURS[number % count], shape)
        number += 1
    return found
