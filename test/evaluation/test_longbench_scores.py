"""Scores of LongBench answers through their samples."""

from __future__ import annotations

import pytest
from longbench_rows import choice_row, row, write_rows

from catekv import tasks


@pytest.fixture
def sample(tmp_path):
    """``sample(task, **fields)``: the sample of a written row."""

    def make(task, **fields):
        (made,) = tasks.read(write_rows(tmp_path / f"{task}.jsonl", row(task, **fields)))
        return made

    return make


def test_the_best_reference_counts_and_an_exact_match_is_told_apart(sample):
    made = sample("hotpotqa", answers=["Eiffel tower", "the tower"])
    scores = tasks.score("The Eiffel Tower, in Paris", made)
    assert scores["official"] == scores["strict"] == pytest.approx(2 / 3)
    assert scores["exact_match"] == 0
    assert tasks.score("a Tower.", made)["exact_match"] == 1


def test_only_the_first_line_of_few_shot_answers_counts(sample):
    made = sample("triviaqa", answers=["blue"])
    assert tasks.score("\nblue\nPassage: red", made) == {
        "official": 1,
        "strict": 1,
        "exact_match": 1,
    }
    assert tasks.score("red\nblue", made)["official"] == 0


def test_classes_that_are_parts_of_the_right_one_do_not_count_strictly(sample):
    classes = ["rock", "rock type", "type", "hard rock type"]
    made = sample("trec", answers=["hard rock type"], all_classes=classes)
    scores = tasks.score("hard rock type", made)
    assert scores == {"official": 0.5, "strict": 1}


def test_code_is_rated_by_the_backend_that_the_sample_names(sample, tmp_path):
    made = sample("lcc", answers=["diet"])
    assert tasks.score("tide", made) == {"official": 0.25, "strict": 0.25, "indel": 0.5}
    (other,) = tasks.read(tmp_path / "lcc.jsonl", backend="indel")
    assert tasks.score("tide", other)["official"] == 0.5


def test_a_paragraph_is_found_by_its_number(sample):
    made = sample("passage_retrieval_en", answers=["Paragraph 12"])
    assert tasks.score("Paragraph 12", made)["official"] == 1
    assert tasks.score("12 or 13", made)["official"] == 0.5
    assert tasks.score("Paragraph 1", made)["official"] == 0


def test_a_letter_must_follow_the_phrase(tmp_path):
    (made,) = tasks.read(write_rows(tmp_path / "data.json", choice_row(answer="B")))
    assert tasks.score("The correct answer is (B).", made)["official"] == 1
    assert tasks.score("The correct answer is B", made)["strict"] == 1
    assert tasks.score("The correct answer is Bern", made)["official"] == 1
    assert tasks.score("The correct answer is Bern", made)["strict"] == 0
    assert tasks.score("", made)["compensated"] == 0.25
