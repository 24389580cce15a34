"""Samples of countable units fill a length: the one rule of RULER's and of all other drawn ones."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from catekv.errors import UserError
from catekv.tasks.drawing.fit import check_filled, filled


@dataclass(frozen=True)
class Toy:
    """Units of 90 tokens and words of one, after a question of 30."""

    minimum: int = 1
    limit: int | None = None
    extra_limit: int = 0

    def tokens(self, units: int, extra: int) -> int:
        return 30 + 90 * units + extra


def fill(plan: Toy, length: int, reserved: int = 0, **options: int) -> tuple[int, int, int]:
    return filled("toy", plan, plan.tokens, plan.tokens, length, reserved, **options)


def test_as_many_units_as_fit_beside_the_answer():
    assert fill(Toy(), 1000) == (10, 0, 930)
    assert fill(Toy(), 1000, reserved=100) == (9, 0, 940)
    assert fill(Toy(limit=4), 1000) == (4, 0, 390)
    assert fill(Toy(), 1000, limit=7) == (7, 0, 660)


def test_words_are_added_where_whole_units_leave_more_than_a_hundredth():
    units, extra, tokens = fill(Toy(extra_limit=200), 1000, reserved=100)
    assert (units, extra + 940) == (9, tokens)
    assert 990 <= tokens <= 1000
    assert fill(Toy(extra_limit=200), 938) == (10, 0, 930)
    assert fill(Toy(extra_limit=5), 1000) == (10, 5, 935)


def test_a_length_that_is_too_short_is_refused_with_the_shortest_possible():
    assert fill(Toy(minimum=2), 250, reserved=40) == (2, 0, 250)
    with pytest.raises(UserError, match=r"toy needs a length of at least 250 tokens .* 249 are"):
        fill(Toy(minimum=2), 249, reserved=40)


def test_a_text_that_is_used_up_is_refused():
    check_filled("toy", 970, 1000)
    with pytest.raises(UserError, match=r"toy reaches only 969 of 1000 tokens: .* used up"):
        check_filled("toy", 969, 1000)
