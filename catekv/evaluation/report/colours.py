"""Colour scales of heat maps."""

from __future__ import annotations

from catekv.errors import UserError

Colour = tuple[int, int, int]

#: Dark blue over grey to yellow: brightness rises all the way, and blue against yellow is what
#: every common kind of colour vision tells apart. Red over yellow to green is the scale of the
#: original needle-in-a-haystack pictures.
SCALES: dict[str, tuple[Colour, ...]] = {
    "blue-yellow": ((0, 34, 78), (87, 93, 109), (165, 156, 116), (254, 232, 56)),
    "red-yellow-green": ((0xF0, 0x49, 0x6E), (0xEB, 0xB8, 0x39), (0x0C, 0xD7, 0x9F)),
}
DEFAULT_SCALE = "blue-yellow"


def check_scale(name: str) -> str:
    """``name`` itself; ``UserError`` if there is no such scale."""
    if name not in SCALES:
        raise UserError(f"unknown colour scale {name!r}; use {' or '.join(SCALES)}")
    return name


def colour_of(share: float, scale: str = DEFAULT_SCALE) -> Colour:
    """Colour of a value from 0 to 1, between the scale's colours; others are clamped."""
    stops = SCALES[scale]
    at = min(max(share, 0.0), 1.0) * (len(stops) - 1)
    below = min(int(at), len(stops) - 2)
    part = at - below
    red, green, blue = (
        round(a + (b - a) * part) for a, b in zip(stops[below], stops[below + 1], strict=True)
    )
    return red, green, blue


def hexadecimal(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def ink_on(colour: Colour) -> str:
    """Black or white, whichever is read better on a colour."""
    return "#000000" if luminance(colour) > 0.18 else "#ffffff"


def luminance(colour: Colour) -> float:
    """Relative luminance as the web's accessibility guidelines define it, 0 to 1."""

    def linear(value: int) -> float:
        share = value / 255
        return share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(value) for value in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
