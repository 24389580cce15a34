"""Colour scales of heat maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from catekv.errors import UserError

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

#: Name to matplotlib's name of the scale, or the colours that it runs through. Dark blue over grey
#: to yellow: brightness rises all the way, and blue against yellow is what every common kind of
#: colour vision tells apart. Red over yellow to green is the scale of the original
#: needle-in-a-haystack pictures.
SCALES: dict[str, str | list[str]] = {
    "blue-yellow": "cividis",
    "red-yellow-green": ["#f0496e", "#ebb839", "#0cd79f"],
}
DEFAULT_SCALE = "blue-yellow"


def check_scale(name: str) -> str:
    """``name`` itself; ``UserError`` if there is no such scale."""
    if name not in SCALES:
        raise UserError(f"unknown colour scale {name!r}; use {' or '.join(SCALES)}")
    return name


def scale_of(name: str) -> Colormap:
    """The scale: from shares (0 to 1, others are clamped) to red, green, blue and alpha."""
    import matplotlib
    from matplotlib.colors import LinearSegmentedColormap

    scale = SCALES[name]
    if isinstance(scale, str):
        return matplotlib.colormaps[scale]
    return LinearSegmentedColormap.from_list(name, scale)


def ink_on(colour: tuple[float, ...]) -> str:
    """Black or white, whichever is read better on a colour."""
    return "#000000" if luminance(colour) > 0.18 else "#ffffff"


def luminance(colour: tuple[float, ...]) -> float:
    """Relative luminance, 0 to 1, of red, green and blue (0 to 1), as the web's accessibility
    guidelines define it."""
    red, green, blue = (
        share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4
        for share in colour[:3]
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
