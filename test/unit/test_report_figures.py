"""Pictures: fronts, scales, heat maps, and that series stay apart."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import pytest

from catekv.evaluation.report import colours, heat_map, plots, svg
from catekv.evaluation.report.frontier import pareto_front

NAMESPACE = "{http://www.w3.org/2000/svg}"


def texts(picture: str) -> list[str]:
    return [e.text or "" for e in ElementTree.fromstring(picture).iter(f"{NAMESPACE}text")]


def test_the_front_is_what_nothing_beats() -> None:
    points = [(1.0, 50.0), (2.0, 90.0), (1.5, 40.0), (3.0, 90.0), (4.0, 95.0)]
    assert pareto_front(points) == [0, 1, 4]


def test_equal_points_of_the_front_all_stay() -> None:
    assert pareto_front([(1.0, 5.0), (1.0, 5.0), (1.0, 4.0)]) == [0, 1]
    assert pareto_front([]) == []


def test_names_have_styles_of_their_own() -> None:
    names = [f"m{n}" for n in range(49)]
    found = svg.styles([*names, "full"], "full")
    assert len(set(found.values())) == 50
    first = [found[name] for name in names[:7]]
    assert len({style.colour for style in first}) == len({style.shape for style in first}) == 7


def simulated(colour: str, kind: str) -> tuple[float, ...]:
    """A colour as seen without red or green cones (Vienot, Brettel and Mollon, 1999)."""
    rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = ((value + 0.055) / 1.055 if value > 0.04 else value for value in rgb)
    red, green, blue = red**2.4, green**2.4, blue**2.4
    if kind == "red":
        seen = 0.11238 * red + 0.88762 * green
        return seen, seen, 0.00401 * red - 0.00401 * green + blue
    seen = 0.29275 * red + 0.70725 * green
    return seen, seen, -0.02234 * red + 0.02234 * green + blue


@pytest.mark.parametrize("kind", ["red", "green"])
def test_colours_stay_apart_without_red_or_green_cones(kind: str) -> None:
    seen = [simulated(colour, kind) for colour in svg.COLOURS]
    for one, other in itertools.combinations(seen, 2):
        assert sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5 > 0.05


def test_the_default_scale_grows_brighter_all_the_way() -> None:
    steps = [colours.luminance(colours.colour_of(n / 20)) for n in range(21)]
    assert steps == sorted(steps)
    assert steps[0] < 0.05
    assert steps[-1] > 0.7


def test_the_original_scale_is_offered() -> None:
    ends = [colours.hexadecimal(colours.colour_of(n, "red-yellow-green")) for n in (0, 0.5, 1)]
    assert ends == ["#f0496e", "#ebb839", "#0cd79f"]


@pytest.mark.parametrize("scale", sorted(colours.SCALES))
def test_numbers_can_be_read_on_every_colour(scale: str) -> None:
    for n in range(21):
        colour = colours.colour_of(n / 20, scale)
        paper = colours.luminance(colour)
        ink = 0.0 if colours.ink_on(colour) == "#000000" else 1.0
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 4.5


GRID = heat_map.Grid([[0.0, 0.5], [1.0, None]], ["0", "100"], ["1K", "2K"], "depth %", "tokens")


def test_a_cell_shows_its_number_and_a_gap_shows_none() -> None:
    picture = heat_map.heat_map(GRID, "full: mean 0.500")
    found = texts(picture)
    assert {"0.00", "0.50", "1.00", "full: mean 0.500", "depth %", "tokens"} <= set(found)
    assert picture.count("stroke-dasharray") == 1


def test_the_scale_does_not_depend_on_the_values() -> None:
    low = heat_map.Grid([[0.1]], ["0"], ["1K"], "", "")
    fill = colours.hexadecimal(colours.colour_of(0.1))
    assert f'fill="{fill}"' in heat_map.heat_map(low, "")


def test_wide_grids_have_no_numbers_but_all_cells() -> None:
    wide = heat_map.Grid([[0.5] * 35] * 35, [str(n) for n in range(35)], ["1"] * 35, "", "")
    picture = heat_map.heat_map(wide, "")
    assert "0.50" not in texts(picture)
    fill = colours.hexadecimal(colours.colour_of(0.5))
    assert picture.count(f'fill="{fill}"') >= 35 * 35


def test_framed_cells_and_the_line_at_the_trained_length() -> None:
    plain = heat_map.heat_map(GRID, "t")
    framed = heat_map.heat_map(GRID, "t", framed=[(0, 1)], line_after=1, line_label="trained: 1K")
    assert framed.count('stroke="#D55E00"') == plain.count('stroke="#D55E00"') + 1
    assert "trained: 1K" in texts(framed)


def point(name: str, cost: float, score: float, series: str | None = None) -> plots.Point:
    return plots.Point(name, cost, score, score - 5, min(100.0, score + 5), series or name)


def test_a_trade_off_names_every_method_and_joins_variants() -> None:
    points = [point("full", 100, 90), point("a (1)", 20, 50, "a"), point("a (2)", 40, 80, "a")]
    looks = svg.styles(["full", "a"], "full")
    style = {p.name: looks[p.series] for p in points}
    picture = plots.trade_off(points, style, "t", "cost")
    assert {"full", "a", "a (1)", "a (2)"} <= set(texts(picture))
    assert picture.count("<polyline") == 2  # the front and the variants


def test_scores_that_are_all_perfect_still_have_an_axis() -> None:
    points = [
        plots.Point(name, cost, 100.0, 100.0, 100.0, name) for name, cost in (("a", 1), ("b", 2))
    ]
    shown = texts(plots.trade_off(points, svg.styles(["a", "b"]), "t", "cost"))
    assert {"80", "90", "100"} <= set(shown)


def test_every_text_of_a_plot_lies_within_it() -> None:
    names = ["a long name of a method, longer than its place (budget 64)", "b"]
    points = [point(name, 50.0, 99.0) for name in names]
    for picture in (
        plots.intervals(points, svg.styles(names), "t"),
        plots.trade_off(points, svg.styles(names), "t", "cost"),
        plots.stacked_bars({"x": [1.0, 2.0]}, ["p", "q"], "t", "ms"),
    ):
        root = ElementTree.fromstring(picture)
        width, height = (float(v) for v in root.get("viewBox", "").split()[2:])
        for element in root.iter(f"{NAMESPACE}text"):
            assert 0 <= float(element.get("x", "0")) <= width
            assert 0 <= float(element.get("y", "0")) <= height


def test_curves_have_a_point_per_length() -> None:
    series = {"full": [(512.0, 90.0), (4096.0, 80.0)], "a": [(512.0, 50.0)]}
    picture = plots.curves(series, svg.styles(["full", "a"], "full"), "t", "score")
    assert {"512", "4K", "full", "a"} <= set(texts(picture))
    assert picture.count("tokens</title>") == 3


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 100, [0, 20, 40, 60, 80, 100]), (60, 100, [60, 70, 80, 90, 100]), (5, 5, [5])],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert svg.ticks(low, high) == pytest.approx(expected)


def test_lengths_are_written_short_only_where_nothing_is_lost() -> None:
    shown = [plots.short_length(n) for n in (512, 1024, 131072, 1 << 20, 1000)]
    assert shown == ["512", "1K", "128K", "1M", "1000"]


def test_text_is_escaped() -> None:
    picture = heat_map.heat_map(GRID, "a<b & c")
    assert "a<b & c" in texts(picture)
    assert not re.search(r"a<b", picture)


@pytest.mark.parametrize("paper", [(255, 255, 255), (0x16, 0x18, 0x1B)])
def test_lines_can_be_seen_on_light_and_dark_paper(paper: colours.Colour) -> None:
    ground = colours.luminance(paper)
    for colour in svg.COLOURS:
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        ink = colours.luminance((red, green, blue))
        assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) > 2
