"""Pictures: fronts, scales, heat maps, and that series stay apart."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Rectangle

from catekv.evaluation.report import colours, heat_map, plots, styles
from catekv.evaluation.report.frontier import pareto_front
from catekv.evaluation.report.pictures import Drawing

NAMESPACE = "{http://www.w3.org/2000/svg}"


def texts(drawing: Drawing) -> list[str]:
    root = ElementTree.fromstring(drawing.svg("name"))
    return [e.text or "" for e in root.iter(f"{NAMESPACE}text")]


def tips(drawing: Drawing) -> list[str]:
    """What the pointer shows; the first title is the picture's."""
    root = ElementTree.fromstring(drawing.svg("name"))
    return [e.text or "" for e in root.iter(f"{NAMESPACE}title")][1:]


def boxes(drawing: Drawing) -> list[Rectangle]:
    return [
        patch for patch in drawing.picture.figure.axes[0].patches if isinstance(patch, Rectangle)
    ]


def test_the_front_is_what_nothing_beats() -> None:
    points = [(1.0, 50.0), (2.0, 90.0), (1.5, 40.0), (3.0, 90.0), (4.0, 95.0)]
    assert pareto_front(points) == [0, 1, 4]


def test_equal_points_of_the_front_all_stay() -> None:
    assert pareto_front([(1.0, 5.0), (1.0, 5.0), (1.0, 4.0)]) == [0, 1]
    assert pareto_front([]) == []


def test_names_have_styles_of_their_own() -> None:
    names = [f"m{n}" for n in range(49)]
    found = styles.styles([*names, "full"], "full")
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
    seen = [simulated(colour, kind) for colour in styles.COLOURS]
    for one, other in itertools.combinations(seen, 2):
        assert sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5 > 0.05


def test_the_default_scale_grows_brighter_all_the_way() -> None:
    scale = colours.scale_of(colours.DEFAULT_SCALE)
    steps = [colours.luminance(scale(n / 20)) for n in range(21)]
    assert steps == sorted(steps)
    assert steps[0] < 0.05
    assert steps[-1] > 0.7


def test_the_original_scale_is_offered() -> None:
    scale = colours.scale_of("red-yellow-green")
    assert [to_hex(scale(n)) for n in (0.0, 1.0)] == ["#f0496e", "#0cd79f"]
    assert scale(0.5)[:3] == pytest.approx(to_rgb("#ebb839"), abs=0.01)


@pytest.mark.parametrize("scale", sorted(colours.SCALES))
def test_numbers_can_be_read_on_every_colour(scale: str) -> None:
    for n in range(21):
        colour = colours.scale_of(scale)(n / 20)
        paper = colours.luminance(colour)
        ink = 0.0 if colours.ink_on(colour) == "#000000" else 1.0
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 4.5


GRID = heat_map.Grid([[0.0, 0.5], [1.0, None]], ["0", "100"], ["1K", "2K"], "depth %", "tokens")


def test_a_cell_shows_its_number_and_a_gap_shows_none() -> None:
    drawing = heat_map.heat_map(GRID, "full: mean 0.500")
    found = texts(drawing)
    assert {"0.00", "0.50", "1.00", "full: mean 0.500", "depth %", "tokens"} <= set(found)
    assert "nan" not in found
    (gap,) = boxes(drawing)
    assert (gap.get_xy(), gap.get_linestyle()) == ((0.5, 0.5), "--")


def test_the_scale_does_not_depend_on_the_values() -> None:
    low = heat_map.Grid([[0.1]], ["0"], ["1K"], "", "")
    (image,) = heat_map.heat_map(low, "").picture.figure.axes[0].images
    assert image.to_rgba(0.1) == colours.scale_of(colours.DEFAULT_SCALE)(0.1)


def test_wide_grids_have_no_numbers_but_all_cells() -> None:
    wide = heat_map.Grid([[0.5] * 35] * 35, [str(n) for n in range(35)], ["1"] * 35, "", "")
    drawing = heat_map.heat_map(wide, "")
    assert "0.50" not in texts(drawing)
    (image,) = drawing.picture.figure.axes[0].images
    assert np.array_equal(image.get_array(), np.full((35, 35), 0.5))


def test_a_large_grid_is_one_picture_and_not_a_node_per_cell() -> None:
    names = [str(n) for n in range(128)]
    large = heat_map.Grid([[0.5] * 128] * 128, names, names, "", "")
    svg = heat_map.heat_map(large, "").svg("name")
    assert svg.count("<image") == 2  # the cells, and the bar of colours
    assert len(list(ElementTree.fromstring(svg).iter())) < 1000


def test_framed_cells_and_the_line_at_the_trained_length() -> None:
    framed = heat_map.heat_map(GRID, "t", framed=[(0, 1)], line_after=1, line_label="trained: 1K")
    (frame,) = [box for box in boxes(framed) if box.get_linestyle() != "--"]
    assert 0.5 < frame.get_x() < 0.6
    assert -0.5 < frame.get_y() < -0.4
    assert to_hex(frame.get_edgecolor()) == "#d55e00"
    assert [list(line.get_xdata()) for line in framed.picture.figure.axes[0].lines] == [
        [0.5, 0.5]
    ] * 2
    assert "trained: 1K" in texts(framed)


def test_a_constant_map_stands_in_the_middle_of_its_scale() -> None:
    flat = heat_map.Grid([[2.0]], ["0"], ["0"], "", "")
    (image,) = heat_map.heat_map(flat, "", span=(2.0, 2.0)).picture.figure.axes[0].images
    assert image.norm(2.0) == 0.5


def test_a_picture_is_the_same_every_time_and_shares_no_id_with_another() -> None:
    first, again = (heat_map.heat_map(GRID, "t").svg("one") for _ in range(2))
    assert first == again
    other = heat_map.heat_map(GRID, "t").svg("two")
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (first, other)]
    assert ids[0]
    assert not ids[0] & ids[1]
    # what is referred to is there
    assert set(re.findall(r"url\(#([^)]+)\)", first)) <= ids[0]


def test_letters_and_paper_are_those_of_the_page() -> None:
    drawing = plots.intervals([point("full", 1, 50)], styles.styles(["full"], "full"), "t")
    svg = drawing.svg("name")
    assert "currentColor" in svg
    assert "DejaVu" not in svg
    assert "<style" not in svg
    ring = styles.Style("#000000", "ring")
    drawn = plots.intervals([point("a", 1, 50)], {"a": ring}, "t").svg("name")
    assert "var(--paper,#fff)" in drawn


def point(name: str, cost: float, score: float, series: str | None = None) -> plots.Point:
    return plots.Point(name, cost, score, score - 5, min(100.0, score + 5), series or name)


def test_a_trade_off_names_every_method_and_joins_variants() -> None:
    points = [point("full", 100, 90), point("a (1)", 20, 50, "a"), point("a (2)", 40, 80, "a")]
    looks = styles.styles(["full", "a"], "full")
    style = {p.name: looks[p.series] for p in points}
    drawing = plots.trade_off(points, style, "t", "cost")
    assert {"full", "a", "a (1)", "a (2)"} <= set(texts(drawing))
    lines = [line.get_xydata() for line in drawing.picture.figure.axes[0].lines]
    front, variants = [line.tolist() for line in lines if len(line) > 1][:2]
    assert front == [[20, 50], [40, 80], [100, 90]]
    assert variants == [[20, 50], [40, 80]]
    assert "a (1): 50.0 (45.0 .. 55.0), 20" in tips(drawing)


def test_scores_that_are_all_perfect_still_have_an_axis() -> None:
    points = [
        plots.Point(name, cost, 100.0, 100.0, 100.0, name) for name, cost in (("a", 1), ("b", 2))
    ]
    shown = texts(plots.trade_off(points, styles.styles(["a", "b"]), "t", "cost"))
    assert {"80", "90", "100"} <= set(shown)


def test_every_text_of_a_plot_lies_within_it() -> None:
    names = ["a long name of a method, longer than its place (budget 64)", "b"]
    points = [point(name, 50.0, 99.0) for name in names]
    for drawing in (
        plots.intervals(points, styles.styles(names), "t"),
        plots.trade_off(points, styles.styles(names), "t", "cost"),
        plots.stacked_bars({"x": [1.0, 2.0]}, ["p", "q"], "t", "ms"),
    ):
        root = ElementTree.fromstring(drawing.svg("name"))
        width, height = (float(v) for v in root.get("viewBox", "").split()[2:])
        places = [_place(element) for element in root.iter(f"{NAMESPACE}text")]
        assert places
        for x, y in places:
            assert 0 <= x <= width
            assert 0 <= y <= height


def _place(element: ElementTree.Element) -> tuple[float, float]:
    """Of a text, by its attributes or by what moves it."""
    if element.get("x") is not None:
        return float(element.get("x", "")), float(element.get("y", ""))
    x, y = re.findall(r"[-\d.]+", element.get("transform", ""))[:2]
    return float(x), float(y)


def test_a_name_that_is_cut_shows_whole_under_the_pointer() -> None:
    name = "a long name of a method, longer than its place (budget 64)"
    drawing = plots.intervals([point(name, 50.0, 99.0)], styles.styles([name]), "t")
    assert name not in texts(drawing)
    assert name in tips(drawing)


def test_curves_have_a_point_per_length() -> None:
    series = {"full": [(512.0, 90.0), (4096.0, 80.0)], "a": [(512.0, 50.0)]}
    drawing = plots.curves(series, styles.styles(["full", "a"], "full"), "t", "score")
    assert {"512", "4K", "full", "a"} <= set(texts(drawing))
    assert tips(drawing) == [
        "full: 90 at 512 tokens", "full: 80 at 4K tokens", "a: 50 at 512 tokens"
    ]  # fmt: skip


def test_lengths_are_written_short_only_where_nothing_is_lost() -> None:
    shown = [plots.short_length(n) for n in (512, 1024, 131072, 1 << 20, 1000)]
    assert shown == ["512", "1K", "128K", "1M", "1000"]


def test_text_is_escaped() -> None:
    drawing = heat_map.heat_map(GRID, "a<b & c")
    assert "a<b & c" in texts(drawing)
    assert "a<b" not in drawing.svg("name")
    assert "$x$" in texts(heat_map.heat_map(GRID, "$x$"))


@pytest.mark.parametrize("paper", ["#ffffff", "#16181b"])
def test_lines_can_be_seen_on_light_and_dark_paper(paper: str) -> None:
    ground = colours.luminance(to_rgb(paper))
    for colour in styles.COLOURS:
        ink = colours.luminance(to_rgb(colour))
        assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) > 2
