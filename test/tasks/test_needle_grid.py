"""Grid and insertion of needles, and middle truncation, against published values."""

from __future__ import annotations

import re

import numpy as np
import pytest

from catekv.errors import UserError
from catekv.tasks.drawing import needle_grid
from catekv.tasks.rows.truncation import halves, keep_ends, middle_cut

TEXT = "One two three. Four five six. Seven eight nine. Ten eleven twelve. "


def _toy_tokens(text: str) -> list[str]:
    return re.findall(r"\w+|\s+|[^\w\s]", text)


def _insert(text: str, needle: str, depth: float, **options) -> str:
    tokens = _toy_tokens(text)
    ends = [token == "." for token in tokens]
    placed = needle_grid.place_needle(tokens, _toy_tokens(needle), ends, depth, **options)
    return "".join(placed.tokens)


def test_published_grid_and_insertion(golden):
    for case in golden("benchmarks", "niah"):
        inputs, expected = case["inputs"], case["expected"]
        if inputs["kind"] == "grid":
            lengths = needle_grid.linear(inputs["min"], inputs["max"], inputs["intervals"])
            assert lengths == expected["context_lengths"]
            assert needle_grid.linear(0, 100, inputs["intervals"]) == expected["depths_linear"]
        else:
            length, buffer = inputs.get("context_length", 1000), inputs.get("buffer", 0)
            result = _insert(
                inputs["text"], inputs["needle"], inputs["depth"], length=length, buffer=buffer
            )
            assert result == expected["result"], case["id"]


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (0, "NEEDLE." + TEXT),
        (25, TEXT.replace("three.", "three.NEEDLE.")),
        (75, TEXT.replace("nine.", "nine.NEEDLE.")),
        (99, TEXT.replace("twelve.", "twelve.NEEDLE.")),
        (100, TEXT + "NEEDLE."),
    ],
)
def test_a_needle_goes_behind_the_full_stop_before_its_depth(depth, expected):
    assert _insert(TEXT, "NEEDLE.", depth) == expected


def test_the_context_is_cut_so_that_needle_and_buffer_fit():
    # 12 tokens less 2 for the needle and 2 of buffer leave the first sentence and a bit
    assert _insert(TEXT, "NEEDLE.", 100, length=12, buffer=2) == "One two three. FourNEEDLE."
    assert _insert(TEXT, "NEEDLE.", 90, length=12, buffer=2) == "One two three.NEEDLE. Four"


def test_full_stops_merged_with_white_space_are_still_found():
    text = "One two.\nThree. Four"
    offsets = [(0, 3), (3, 7), (7, 9), (9, 14), (14, 16), (16, 20)]
    assert [text[start:end] for start, end in offsets] == [
        "One",
        " two",
        ".\n",
        "Three",
        ". ",
        "Four",
    ]
    ends = needle_grid.ends_of_tokens(text, offsets)
    assert ends == [False, False, True, False, True, False]
    assert needle_grid.insertion_point(ends, 80) == 3
    assert needle_grid.insertion_point(ends, 90) == 5
    assert needle_grid.insertion_point(ends, 49) == 0


def test_a_token_that_also_starts_the_next_sentence_is_no_end():
    assert needle_grid.ends_of_tokens("Go. On.", [(0, 2), (2, 5), (5, 7)]) == [False, False, True]


def test_sentence_ends():
    text = 'It cost 3.5 pounds. "Really?" Mr. Hill left.'
    assert [text[:end].split()[-1] for end in needle_grid.sentence_ends(text)] == [
        "pounds.",
        '"Really?"',
        "left.",
    ]
    assert needle_grid.sentence_ends("你好。再见。") == [3, 6]


def test_grids():
    assert needle_grid.linear(0, 100, 35) == np.linspace(0, 100, 35).round().astype(int).tolist()
    lengths = needle_grid.linear(1000, 16000, 35)
    assert lengths == np.linspace(1000, 16000, 35).round().astype(int).tolist()
    assert needle_grid.linear(5, 9, 1) == [5]
    with pytest.raises(UserError, match="no grid of 0 points"):
        needle_grid.linear(0, 1, 0)
    with pytest.raises(UserError, match="from 9 to 5"):
        needle_grid.linear(9, 5, 3)


def test_sigmoid_depths_rise_and_the_published_ones_do_not():
    assert needle_grid.sigmoid(5) == [0, 7.586, 50, 92.414, 100]
    assert needle_grid.sigmoid(5, inverted=True) == [0, 92.414, 50, 7.586, 100]
    depths = needle_grid.sigmoid(35)
    assert depths == sorted(depths)


def test_several_needles_share_the_rest_of_the_context():
    assert needle_grid.needle_depths(40, 3) == [40, 60, 80]


def test_wrong_places_are_refused():
    with pytest.raises(UserError, match="do not fit into 100 tokens"):
        needle_grid.place_needle([1] * 50, [2] * 10, [True] * 50, 50, length=100)
    with pytest.raises(UserError, match="3 tokens but 2 sentence flags"):
        needle_grid.place_needle([1, 2, 3], [9], [True, True], 50)
    with pytest.raises(UserError, match="depth 101"):
        needle_grid.insertion_point([True], 101)


def test_published_middle_truncation(golden):
    for case in golden("benchmarks", "middle_truncation"):
        tokens, limit = list(range(case["inputs"]["n"])), case["inputs"]["max"]
        assert keep_ends(tokens, limit) == case["expected"]["kept_v1"]
        assert keep_ends(tokens, limit, "v2") == case["expected"]["kept_v2"]


def test_middle_truncation_keeps_both_ends_and_counts_what_goes():
    assert keep_ends(range(11), 7) == [0, 1, 2, 8, 9, 10]
    assert keep_ends(range(11), 7, "v2") == [0, 1, 2, 7, 8, 9, 10]
    assert middle_cut(11, 7) == (3, 3, 5)
    assert middle_cut(7, 7) == (7, 0, 0)
    head, tail, removed = halves("abcdef", 4)
    assert (head, tail, removed) == ("ab", "ef", 2)
    assert halves("abcd", 4) == ("abcd", "", 0)
    with pytest.raises(UserError, match="valid: v1, v2"):
        middle_cut(5, 3, "v3")
    with pytest.raises(UserError, match="must be 2 or more"):
        middle_cut(5, 1)
