"""Which task a file is about, by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from catekv.errors import UserError
from catekv.tasks.rows.named_files import NamedFiles

FILES = NamedFiles("Toy", "toy/", ("find", "find_two", "sum"), frozenset({"context"}))
FOLDERS = NamedFiles("Toy", "toy/", ("find", "sum"), frozenset(), folders=True)


@pytest.mark.parametrize(
    ("path", "task"),
    [
        ("find.jsonl", "find"),
        ("toy_find.jsonl", "find"),
        ("find_two.jsonl", "find_two"),
        ("find_test.jsonl", "find"),
        ("findings.jsonl", None),
        ("sum/test.jsonl", None),
    ],
)
def test_the_longest_name_that_a_file_starts_or_ends_with_is_its_task(path, task):
    assert FILES.task_of_path(Path(path)) == task


def test_folders_count_where_the_family_says_so_and_the_nearest_name_wins():
    assert FOLDERS.task_of_path(Path("sum/validation.jsonl")) == "sum"
    assert FOLDERS.task_of_path(Path("sum/find/validation.jsonl")) == "find"
    assert FOLDERS.task_of_path(Path("sum/find.jsonl")) == "find"


def test_a_task_that_is_asked_for_comes_before_the_name():
    assert FILES.task(Path("find.jsonl"), "toy/sum") == FILES.task(Path("sum.jsonl"), None) == "sum"
    with pytest.raises(UserError, match=r"a\.jsonl: the path holds no Toy task; pass task="):
        FILES.task(Path("a.jsonl"), None)


def test_rows_are_recognised_by_name_and_fields():
    assert FILES.recognise({"context": "", "id": 1}, Path("sum.jsonl")) == "toy/sum"
    assert FILES.recognise({"id": 1}, Path("sum.jsonl")) is None
    assert FILES.recognise({"context": ""}, Path("other.jsonl")) is None
