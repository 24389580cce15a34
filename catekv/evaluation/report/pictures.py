"""A matplotlib figure as an ``svg`` element of a page: same bytes every time, light and dark.

Sizes are pixels: a figure has 72 of them per inch, which is the unit of matplotlib's SVG.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial, wraps
from typing import TYPE_CHECKING, Any, ParamSpec
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMESPACE = "http://www.w3.org/2000/svg"
#: Stand in for the page's own colours of letters and paper, which matplotlib cannot name.
INK, PAPER = "#010203", "#fcfdfe"
_PAGE_COLOURS = {INK: "currentColor", PAPER: "var(--paper,#fff)"}
_FONT = "system-ui, sans-serif"
#: How matplotlib writes its fonts, up to release 3.10 and since.
_FAMILIES = re.compile(r"(font: [^;]*?px|font-family:)[^;]*")
#: Letters over lines stay readable on the page's own paper.
_HALO = "stroke:var(--paper,#fff);stroke-width:3px;paint-order:stroke"
_PIXELS = 72
FONT_SIZE = 12
_CHARACTER = 7.0  # mean width of a character at that size
_SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": FONT_SIZE,
    "figure.facecolor": "none",
    "figure.dpi": _PIXELS,
    "savefig.dpi": _PIXELS,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.15,
    "grid.linewidth": 1,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "grid.color"), INK),
    **dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("axes.labelsize", "xtick.labelsize", "ytick.labelsize"), FONT_SIZE),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 0),
    **{f"axes.spines.{side}": False for side in ("left", "right", "top", "bottom")},
}
_Arguments = ParamSpec("_Arguments")


@dataclass(frozen=True)
class Drawing:
    """A picture that is drawn when it is asked for: a page may be read without its pictures."""

    draw: Callable[[], Picture]

    @cached_property
    def picture(self) -> Picture:
        with _settings():
            return self.draw()

    def svg(self, name: str) -> str:
        """As :meth:`Picture.svg`."""
        return self.picture.svg(name)


def drawing(function: Callable[_Arguments, Picture]) -> Callable[_Arguments, Drawing]:
    """Let a function draw with the page's settings, whatever a user has set in matplotlib."""

    @wraps(function)
    def later(*arguments: _Arguments.args, **named: _Arguments.kwargs) -> Drawing:
        return Drawing(partial(function, *arguments, **named))

    return later


def _settings(**more: object) -> Any:
    # loads slowly, and commands import this module long before they draw
    from matplotlib import style

    return style.context(["default", _SETTINGS | more])


@dataclass
class Picture:
    """A figure with what the pointer shows.

    Args:
        figure: drawn by a function under :func:`drawing`. title: for screen readers.
        width, height: in pixels.
    """

    figure: Figure
    title: str
    width: float
    height: float
    _tips: dict[str, str] = field(default_factory=dict)
    _halos: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, width: float, height: float, title: str) -> Picture:
        """An empty one."""
        from matplotlib.figure import Figure

        return cls(Figure((width / _PIXELS, height / _PIXELS)), title, width, height)

    def axes(self, left: float, bottom: float, right: float, top: float) -> Axes:
        """Axes in the picture with margins in pixels."""
        inner = (self.width - left - right, self.height - bottom - top)
        return self.figure.add_axes(
            (
                left / self.width,
                bottom / self.height,
                inner[0] / self.width,
                inner[1] / self.height,
            )
        )

    def tip(self, artist: Artist, words: str) -> None:
        """Show a text when the pointer rests on a part."""
        artist.set_gid(f"tip{len(self._tips)}")
        self._tips[str(artist.get_gid())] = words

    def halo(self, artist: Artist) -> None:
        """Keep a text readable where it crosses lines."""
        artist.set_gid(f"halo{len(self._halos)}")
        self._halos.add(str(artist.get_gid()))

    def svg(self, name: str) -> str:
        """The whole ``svg`` element; ``name`` keeps its ids apart from those of other pictures."""
        stream = io.StringIO()
        with _settings(**{"svg.hashsalt": name}):
            nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            self.figure.savefig(stream, format="svg", metadata=nothing)
        root = ElementTree.fromstring(stream.getvalue())
        self._mark(root)
        _simplify(root)
        root.attrib = {
            "xmlns": NAMESPACE,
            "viewBox": f"0 0 {self.width:.0f} {self.height:.0f}",
            "width": f"{self.width:.0f}",
            "height": f"{self.height:.0f}",
            "role": "img",
            "aria-label": self.title,
            "style": "stroke-linejoin:round",
        }
        _add_title(root, self.title)
        return ElementTree.tostring(root, encoding="unicode").strip()

    def _mark(self, root: ElementTree.Element) -> None:
        for element in root.iter():
            identifier = element.get("id", "")
            if identifier in self._tips:
                _add_title(element, self._tips[identifier])
            elif identifier in self._halos:
                element.set("style", _HALO)


def _add_title(element: ElementTree.Element, words: str) -> None:
    title = ElementTree.Element("title")
    title.text = words
    element.insert(0, title)


def _simplify(root: ElementTree.Element) -> None:
    """What a page needs: no style sheet of its own, no unused ids, its letters and its colours."""
    for parent in root.iter():
        for child in [child for child in parent if child.tag.endswith("}style")]:
            parent.remove(child)
    used: set[str] = set()
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {name.rpartition("}")[2]: v for name, v in element.attrib.items()}
        used.add(element.get("href", "").removeprefix("#"))
        for value in element.attrib.values():
            used.update(re.findall(r"url\(#([^)]+)\)", value))
    for element in root.iter():
        if element.get("id") not in used:
            element.attrib.pop("id", None)
        if style := element.get("style"):
            for colour, name in _PAGE_COLOURS.items():
                style = style.replace(colour, name)
            element.set("style", _FAMILIES.sub(rf"\1 {_FONT}", style))


def text_width(words: str, size: float = FONT_SIZE) -> float:
    """About how wide a text is, in pixels; the reader's font is not known."""
    return _CHARACTER * len(words) * size / FONT_SIZE
