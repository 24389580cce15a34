"""Rules of options: kinds, ranges, words and readers, and how ``catekv methods`` prints them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from catekv import methods
from catekv.commands.method_list import describe_method, render_details
from catekv.errors import UserError
from catekv.methods.options import check_options, meanings_of, method_option, rules_of


@dataclass(frozen=True)
class Parent:
    """A parent.

    Args:
        share, part: two shares,
            of something: both.
        size: odd.

    Raises:
        UserError: never.
    """

    share: float = method_option(0.5, above=0, most=1)
    part: float | None = method_option(None, least=0, below=1)
    size: int = method_option(3, least=1, odd=True)
    rows: int | list[int] = method_option(4, least=2)
    word: str = method_option("a", words=("a", "b", "c"))
    table: Any = method_option((1,), convert=tuple, needs="a table; give table=FILE")
    place: str | None = None

    def __post_init__(self) -> None:
        check_options("parent", self)


@dataclass(frozen=True)
class Child(Parent):
    """A child.

    Args:
        size: larger.
    """

    size: int = 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0}, r"parent: share 0 is outside \(0, 1\]"),
        ({"share": "x"}, "share 'x' is not a number"),
        ({"share": float("nan")}, "share nan is not a number"),
        ({"share": True}, "share True is not a number"),
        ({"share": None}, "share None is not a number"),
        ({"part": 1.0}, r"part 1.0 is outside \[0, 1\)"),
        ({"size": 4}, "size 4 must be odd and at least 1"),
        ({"size": -1}, "size -1 must be odd and at least 1"),
        ({"rows": 1}, "rows 1 must be at least 2"),
        ({"rows": 2.5}, "rows 2.5 is not a whole number"),
        ({"rows": True}, "rows True is not a whole number"),
        ({"word": "d"}, "unknown word 'd'; use a, b, c"),
        ({"table": None}, "parent needs a table; give table=FILE"),
        ({"place": 3}, "place 3 is not text"),
    ],
)
@pytest.mark.parametrize("cls", [Parent, Child])
def test_values_outside_a_rule_are_refused(
    cls: type[Parent], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        cls(**options)


def test_allowed_values_are_read() -> None:
    made = Child(share=1, part=0, size=9, rows=[1], table=[1, 2], place=Path("folder"))
    assert (made.rows, made.table, made.place) == ([1], (1, 2), "folder")
    assert Child().size == 7


def test_rules_and_meanings_are_inherited() -> None:
    assert rules_of(Child)["size"].text == "odd and at least 1"
    assert rules_of(Child)["share"].text == "in (0, 1]"
    assert rules_of(Child)["place"].text == ""
    assert meanings_of(Child)["size"] == "larger."
    assert meanings_of(Child)["part"] == "two shares, of something: both."
    assert "UserError" not in meanings_of(Parent)


@pytest.mark.parametrize("name", methods.available())
def test_every_option_of_every_method_has_a_meaning(name: str) -> None:
    described = describe_method(name)
    missing = [option for option in described["options"] if option not in described["meanings"]]
    assert not missing


def test_the_command_says_default_range_and_meaning() -> None:
    lines = render_details(describe_method("adakv")).splitlines()
    place = lines.index("  floor = 0.2  (in [0, 1])")
    assert lines[place + 1].strip().startswith("share of its budget that no head loses")
    assert "  exact = false  [true]" in lines
