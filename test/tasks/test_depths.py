"""Grids of depths: how they are written, in what order they are walked, which cell a sample is."""

from __future__ import annotations

from itertools import pairwise

import pytest

from catekv.errors import UserError
from catekv.tasks.drawing.depths import cell, read_depths
from catekv.tasks.drawing.needle_grid import linear, sigmoid


def test_a_number_is_the_original_even_grid():
    assert sorted(read_depths(35)) == linear(0, 100, 35)
    assert read_depths(1) == (50.0,)


def test_grids_by_name():
    assert sorted(read_depths("linear:0:100:10")) == linear(0, 100, 10)
    assert sorted(read_depths("linear:20:60:3")) == [20, 40, 60]
    assert sorted(read_depths("sigmoid:11")) == sigmoid(11)


def test_listed_depths_keep_their_order():
    assert read_depths("90,10,50") == (90.0, 10.0, 50.0)
    assert read_depths([90, 10.5]) == (90.0, 10.5)
    assert read_depths("42") == (42.0,)
    assert read_depths(42.5) == (42.5,)


def test_grids_are_walked_from_coarse_to_fine():
    assert read_depths(5) == (0.0, 100.0, 50.0, 25.0, 75.0)
    for count in (7, 11, 35):
        walked = read_depths(count)
        for seen in range(2, count + 1):
            places = sorted(walked[:seen])
            gaps = [after - before for before, after in pairwise(places)]
            assert max(gaps) <= 4 * min(gaps) + 2, (count, seen)


@pytest.mark.parametrize(
    "given",
    [
        "",
        "deep",
        "0,101",
        [-1],
        "10,10",
        0,
        True,
        "linear:0:100",
        "sigmoid:1",
        "nan",
        [None],
        None,
        {50},
        10**9,
        "linear:0:100:inf",
        "linear:nan:100:5",
        "linear:0:100:1e12",
        "sigmoid:1e12",
    ],
)
def test_what_is_no_grid_is_refused(given):
    with pytest.raises(UserError, match=r"depth|grid"):
        read_depths(given)


def test_samples_fill_cell_after_cell_and_then_start_further_rounds():
    depths = (0.0, 50.0, 100.0)
    cells = [cell(index, depths, 2) for index in range(10)]
    assert cells[:6] == [(0, 0), (0, 1), (50, 0), (50, 1), (100, 0), (100, 1)]
    assert cells[6:] == [(0, 2), (50, 2), (100, 2), (0, 3)]
    assert [cell(index, depths, 1) for index in (0, 1, 2, 3)] == [
        (0, 0),
        (50, 0),
        (100, 0),
        (0, 1),
    ]
