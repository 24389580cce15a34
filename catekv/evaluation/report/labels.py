"""Names beside the points of a plot, where they cover nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from catekv.evaluation.report.pictures import Picture, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE = 11
_HEIGHT = 13
Box = tuple[float, float, float, float]


class Labels:
    """Places of one plot that are taken; matplotlib itself writes labels over each other.

    Args:
        picture, axes: to write in; the axes' limits are final.
    """

    def __init__(self, picture: Picture, axes: Axes) -> None:
        self.picture = picture
        self.axes = axes
        self.taken: list[Box] = []

    def keep_free(self, x: float, y: float, radius: float = 6) -> None:
        """No label is to cover this point of the plot."""
        a, b = self.axes.transData.transform((x, y))
        self.taken.append((a - radius, b - radius, a + radius, b + radius))

    def write(self, x: float, y: float, words: str, *, needed: bool) -> None:
        """Write beside a point where nothing else stands.

        With ``needed`` it is written below the point even where it covers something.
        """
        a, b = self.axes.transData.transform((x, y))
        width = text_width(words, _SIZE)
        right, left, middle = a + 9, a - 9 - width, a - width / 2
        places = [
            (right, b - 4), (left, b - 4), (middle, b + 9), (middle, b - 18),
            (right, b + 8), (right, b - 16), (left, b + 8), (left, b - 16),
        ]  # fmt: skip
        place = next((place for place in places if self._is_free(_box(place, width))), None)
        if place is None:
            if not needed:
                return
            start = self.axes.bbox.x0
            place = (min(max(middle, start), self.picture.width - width), b - 18)
        self.taken.append(_box(place, width))
        text = self.axes.annotate(words, place, xycoords="figure pixels", fontsize=_SIZE)
        self.picture.halo(text)

    def _is_free(self, box: Box) -> bool:
        plot = self.axes.bbox
        if box[0] < plot.x0 - 4 or box[2] > self.picture.width:
            return False
        if box[1] < plot.y0 - 2 or box[3] > self.picture.height:
            return False
        return all(
            box[2] <= other[0] or other[2] <= box[0] or box[3] <= other[1] or other[3] <= box[1]
            for other in self.taken
        )


def _box(place: tuple[float, float], width: float) -> Box:
    return place[0], place[1] - 3, place[0] + width, place[1] + _HEIGHT - 3
