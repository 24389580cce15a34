"""Scalable vector graphics by hand: elements, colours, markers and a pair of axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

NAMESPACE = "http://www.w3.org/2000/svg"
#: Colours that stay apart for all common kinds of colour vision: those of Okabe and Ito, violet in
#: the place of yellow, which is too light for lines. Shapes tell apart what has the same colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A4FCF")
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "down", "ring")
#: Of the reference, full attention: the page's own text colour.
REFERENCE_COLOUR = "currentColor"
FONT_SIZE = 12
#: Letters over lines stay readable on the page's own paper.
_HALO = "stroke:var(--paper,#fff);stroke-width:3px;paint-order:stroke"
_CHARACTER = 7.0  # mean width of a character at that size


def element(name: str, content: str = "", **attributes: object) -> str:
    """One element; ``_`` in attribute names becomes ``-``, None is left out, content is XML."""
    words = [name]
    for key, value in attributes.items():
        if value is None:
            continue
        shown = f"{value:.1f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        words.append(f'{key.rstrip("_").replace("_", "-")}="{escape(shown)}"')
    return f"<{' '.join(words)}>{content}</{name}>" if content else f"<{' '.join(words)}/>"


def text(x: float, y: float, words: str, **attributes: object) -> str:
    """A line of text with its baseline at ``y``."""
    return element("text", escape(words), x=x, y=y, fill="currentColor", **attributes)


def text_width(words: str, size: float = FONT_SIZE) -> float:
    """About how wide a text is; fonts differ."""
    return _CHARACTER * len(words) * size / FONT_SIZE


def drawing(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    """A whole picture with its title for screen readers."""
    return element(
        "svg",
        element("title", escape(title)) + "".join(parts),
        xmlns=NAMESPACE,
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        width=f"{width:.0f}",
        height=f"{height:.0f}",
        role="img",
        aria_label=title,
        font_family="system-ui, sans-serif",
        font_size=FONT_SIZE,
    )


@dataclass(frozen=True)
class Style:
    """Colour and marker of one series, the same in every picture of a page."""

    colour: str
    shape: str


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


def marker(x: float, y: float, style: Style, tip: str = "", size: float = 5.0) -> str:
    """A series' mark with a text that appears when the pointer rests on it."""
    title = element("title", escape(tip)) if tip else ""
    colour = style.colour
    if style.shape == "circle":
        return element("circle", title, cx=x, cy=y, r=size, fill=colour)
    if style.shape == "ring":
        ring = f"fill:var(--paper,#fff);stroke:{colour};stroke-width:2.5px"
        return element("circle", title, cx=x, cy=y, r=size - 1, style=ring)
    if style.shape == "cross":
        side = 2 * size
        arms = f"M{x - size:.1f} {y - size:.1f}l{side} {side}m0 {-side}l{-side} {side}"
        return element("path", title, d=arms, stroke=colour, stroke_width=2.5, fill="none")
    corners = [
        (x + size * radius * math.sin(angle), y - size * radius * math.cos(angle))
        for angle, radius in _OUTLINES[style.shape]
    ]
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
    return element("polygon", title, points=points, fill=colour)


def _polygon(corners: int, turn: float, radius: float) -> list[tuple[float, float]]:
    return [(turn + 2 * math.pi * n / corners, radius) for n in range(corners)]


#: Shape to its corners as (angle from the top, radius).
_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": _polygon(4, math.pi / 4, 1.25),
    "diamond": _polygon(4, 0.0, 1.35),
    "triangle": _polygon(3, 0.0, 1.35),
    "down": _polygon(3, math.pi, 1.35),
    "star": [(math.pi * n / 5, 1.6 if n % 2 == 0 else 0.75) for n in range(10)],
}


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``, both ends within."""
    span = high - low
    if span <= 0:
        return [low]
    step = 10.0 ** math.floor(math.log10(span / about))
    for factor in (1, 2, 2.5, 5, 10):
        if span / (step * factor) <= about:
            step *= factor
            break
    first = math.ceil(low / step - 1e-9)
    count = math.floor((high - first * step) / step + 1e-9) + 1
    return [(first + n) * step for n in range(count)]


@dataclass
class Axes:
    """A frame with two scales; parts are added to ``parts`` in drawing order.

    Args:
        x_range, y_range: values at the frame's ends.
        logarithmic: the x scale shows powers; both ends are above 0 then.
        width, height: of the frame with its labels, in pixels.
    """

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    logarithmic: bool = False
    width: float = 440
    height: float = 300
    left: float = 46
    right: float = 14
    top: float = 14
    bottom: float = 44
    parts: list[str] = field(default_factory=list)
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    def x(self, value: float) -> float:
        low, high = self.x_range
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        share = (value - low) / (high - low) if high > low else 0.5
        return self.left + (self.width - self.left - self.right) * share

    def y(self, value: float) -> float:
        low, high = self.y_range
        share = (value - low) / (high - low) if high > low else 0.5
        return self.height - self.bottom - (self.height - self.top - self.bottom) * share

    def frame(
        self,
        x_title: str,
        y_title: str,
        x_ticks: Sequence[float],
        y_ticks: Sequence[float],
        x_label: Callable[[float], str] = "{:g}".format,
        y_label: Callable[[float], str] = "{:g}".format,
    ) -> None:
        """Grid lines, numbers and titles."""
        right, floor = self.width - self.right, self.height - self.bottom
        for tick in y_ticks:
            at = self.y(tick)
            self._grid(self.left, right, at, at)
            self.parts.append(text(self.left - 6, at + 4, y_label(tick), text_anchor="end"))
        for tick in x_ticks:
            at = self.x(tick)
            self._grid(at, at, self.top, floor)
            self.parts.append(text(at, floor + 16, x_label(tick), text_anchor="middle"))
        middle = (self.left + right) / 2
        self.parts.append(text(middle, self.height - 8, x_title, text_anchor="middle"))
        turned = f"translate(12 {(self.top + floor) / 2:.1f}) rotate(-90)"
        self.parts.append(element("g", text(0, 0, y_title, text_anchor="middle"), transform=turned))

    def _grid(self, x1: float, x2: float, y1: float, y2: float) -> None:
        self.parts.append(
            element(
                "line", x1=x1, x2=x2, y1=y1, y2=y2, stroke="currentColor", stroke_opacity="0.15"
            )
        )

    def keep_free(self, x: float, y: float, radius: float = 6) -> None:
        """No label is to cover this place of the picture."""
        self.taken.append((x - radius, y - radius, x + radius, y + radius))

    def label(self, x: float, y: float, words: str, *, needed: bool = True) -> bool:
        """Write beside a point where nothing else stands; tell whether it was written.

        With ``needed`` it is written below the point even where it covers something.
        """
        width = text_width(words, 11)
        places = [
            (x + 9, y + 4), (x - 9 - width, y + 4), (x - width / 2, y - 9),
            (x - width / 2, y + 18), (x + 8, y - 8), (x + 8, y + 16),
            (x - 8 - width, y - 8), (x - 8 - width, y + 16),
        ]  # fmt: skip
        for place in places:
            box = (place[0], place[1] - 10, place[0] + width, place[1] + 3)
            if self._is_free(box):
                break
        else:
            if not needed:
                return False
            place = (min(max(x - width / 2, self.left), self.width - width), y + 18)
            box = (place[0], place[1] - 10, place[0] + width, place[1] + 3)
        self.taken.append(box)
        self.parts.append(text(*place, words, font_size=11, style=_HALO))
        return True

    def _is_free(self, box: tuple[float, float, float, float]) -> bool:
        if box[0] < self.left - 4 or box[2] > self.width or box[1] < 0:
            return False
        if box[3] > self.height - self.bottom + 2:
            return False
        return all(
            box[2] <= other[0] or other[2] <= box[0] or box[3] <= other[1] or other[3] <= box[1]
            for other in self.taken
        )


def legend(entries: Sequence[tuple[str, Style]], width: float, top: float) -> tuple[str, float]:
    """Marks with their names in columns below a picture, and the height they take."""
    if not entries:
        return "", 0.0
    column = max(text_width(name) for name, _ in entries) + 30
    columns = max(1, int(width // column))
    rows = math.ceil(len(entries) / columns)
    parts = []
    for number, (name, style) in enumerate(entries):
        x = 14 + (number // rows) * (width / columns)
        y = top + 18 * (number % rows) + 10
        parts += [marker(x, y, style), text(x + 12, y + 4, name)]
    return "".join(parts), 18.0 * rows + 6
