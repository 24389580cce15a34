"""Scores of single predictions, against the numbers of the published scorers."""

from __future__ import annotations

import pytest

from catekv.tasks import metrics
from catekv.tasks.families.ruler.fwe import frequent_counts, zeta


def test_official_string_match_equals_the_published_scorer(golden):
    for case in golden("benchmarks", "string_match"):
        predictions, references = case["inputs"]["preds"], case["inputs"]["refs"]
        expected = case["expected"]
        assert [metrics.clean(text) for text in predictions] == expected["postprocessed"]
        for name in ("string_match_all", "string_match_part"):
            score = getattr(metrics, name)
            mean = sum(map(score, predictions, references)) / len(predictions)
            assert round(100 * mean, 2) == pytest.approx(expected[name], abs=0.005)


def test_part_gives_one_where_lm_eval_gives_a_fraction(golden):
    for case in golden("benchmarks", "string_match_part_vs_lm_eval"):
        score = metrics.string_match_part(case["inputs"]["pred"], case["inputs"]["refs"])
        assert score == case["expected"]["ruler"]


def test_family_metrics_equal_the_published_ones_except_for_empty_answers(golden):
    for case in golden("benchmarks", "catekv_metrics"):
        score = getattr(metrics, case["inputs"]["fn"])
        value = score(case["inputs"]["pred"], case["inputs"]["ref"])
        assert value == pytest.approx(case["expected"]["ours"]), case["id"]


def test_frequent_word_counts_follow_the_zeta_law(golden):
    for case in golden("benchmarks", "fwe_counts"):
        inputs, expected = case["inputs"], case["expected"]
        counts = frequent_counts(inputs["num_words"], inputs["vocab"], inputs["alpha"])
        assert counts[:8] == expected["first8"]
        assert sum(counts) == expected["total"]
        assert len(counts) == expected["nonzero"]


def test_zeta_of_two_is_pi_squared_over_six():
    assert zeta(2.0) == pytest.approx(1.6449340668482264, rel=1e-12)
    assert zeta(1.5) == pytest.approx(2.6123753486854883, rel=1e-12)


@pytest.mark.parametrize(
    ("prediction", "reference", "official", "strict"),
    [
        ("start heart", "art", 1, 0),
        ("it is art.", "ART", 1, 1),
        ("81234567", "1234567", 1, 0),
        ("number 1234567,", "1234567", 1, 1),
        ("a_1234567", "1234567", 1, 0),
        ("62 96\n49", "62 96 49", 0, 1),
        ("", "1234567", 0, 0),
        ("   \x00\x07 ", "x", 0, 0),
    ],
)
def test_strict_match_asks_for_whole_words(prediction, reference, official, strict):
    assert metrics.string_match_all(prediction, [reference]) == official
    assert metrics.string_match_part(prediction, [reference]) == official
    assert metrics.strict_match_all(prediction, [reference]) == strict
    assert metrics.strict_match_part(prediction, [reference]) == strict


def test_all_counts_shares_and_part_needs_one():
    references = ["one", "two", "three", "four"]
    assert metrics.string_match_all("two and four", references) == 0.5
    assert metrics.string_match_part("two and four", references) == 1
    assert metrics.strict_match_all("two and fourteen", references) == 0.25


def test_set_f1_punishes_naming_everything():
    references = ["ABCDE", "FGHIJ"]
    assert metrics.set_f1("ABCDE, FGHIJ.", references) == 1
    assert metrics.set_f1(
        "ABCDE FGHIJ " + " ".join(f"QQQQ{c}" for c in "ABCDEFGH"), references
    ) == (pytest.approx(2 * 2 / (2 + 10)))
    assert metrics.set_f1("The variables are: ABCDE", references) == pytest.approx(2 / 3)
    assert metrics.set_f1("", references) == 0


def test_set_f1_of_common_words_ignores_numbers_and_case():
    assert metrics.set_f1("1. Mivora 2. tobelu", ["mivora", "tobelu"]) == 1


def test_qa_f1():
    score = metrics.qa_f1("The Eiffel Tower, in Paris", ["Eiffel tower"])
    assert score == pytest.approx(0.6667, abs=1e-4)
    assert metrics.qa_f1("", ["a"]) == 0


def test_needle_score_needs_the_start_or_a_word():
    assert metrics.needle_score("1234567 and more</s>", "1234567") == 1
    assert metrics.needle_score("it is 1234567.", "1234567") == 1
    assert metrics.needle_score("it is x1234567", "1234567") == 0
    assert metrics.needle_score("", "1234567") == 0
