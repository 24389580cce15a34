"""Suites: names for tasks, lengths and samples; what a user says beats them."""

from __future__ import annotations

import dataclasses

import pytest

from catekv.errors import UserError
from catekv.evaluation.run.request import Request
from catekv.evaluation.run.suites import applied, suites
from catekv.tasks.registry import available, families, family_of, find


def test_mini_covers_every_family() -> None:
    mini = applied(Request(suite="mini"))
    spoken = {family.name for family in families() if any(task.small for task in family.tasks)}
    assert {family_of(find(name)).name for name in mini.tasks} == spoken
    assert spoken == {family.name for family in families()}
    assert (mini.lengths, mini.samples) == ((512,), 2)
    assert mini.task_options == {"source": "built-in"}
    assert "ruler/cwe" not in mini.tasks  # its words are not in the embedded vocabulary


def test_every_benchmark_is_a_suite_and_the_paper_is_one() -> None:
    assert set(suites()) == {"mini", "paper", *(name.split("/")[0] for name in available())}
    assert len(suites()["longbench"].tasks) == 21
    ruler = applied(Request(suite="ruler"))
    assert len(ruler.tasks) >= 13
    assert ruler.lengths == ()
    paper = applied(Request(suite="paper"))
    assert paper.paper
    assert (len(paper.tasks), paper.lengths, paper.samples) == (12, (131072,), 96)


def test_what_the_user_says_beats_the_suite() -> None:
    given = Request(
        suite="mini", samples=1, lengths=(768,), max_new_tokens=8, task_options={"source": "path"}
    )
    changed = applied(given)
    assert (changed.samples, changed.lengths, changed.max_new_tokens) == (1, (768,), 8)
    assert changed.task_options == {"source": "path"}
    plain = Request(tasks=("ruler/vt",))
    assert applied(plain) is plain


def test_suites_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="unknown suite 'maxi'; there are mini, paper, ruler"):
        applied(Request(suite="maxi"))
    with pytest.raises(UserError, match="made for the embedded model"):
        applied(Request(suite="mini", model="org/other"))
    with pytest.raises(UserError, match="leave out --tasks or --suite"):
        applied(dataclasses.replace(Request(suite="mini"), tasks=("ruler/vt",)))
