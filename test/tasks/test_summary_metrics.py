"""ZeroSCROLLS and summarisation scores, and deviating ones of other harnesses."""

from __future__ import annotations

import json

import pytest

from catekv import tasks
from catekv.errors import UserError
from catekv.tasks import metrics
from catekv.tasks.metrics import compat, summaries, zeroscrolls


@pytest.mark.parametrize(
    ("task", "prediction", "reference", "expected"),
    [
        ("qasper", "the Eiffel tower", ["Rome", "Eiffel Tower"], 1),
        ("narrative_qa", "paris paris", "Paris", 2 / 3),
        ("quality", "(B) because A", "B", 1),
        ("quality", "Because B", "(B) text", 1),
        ("quality", "because", "B", 0),
        ("space_digest", "about 60% are", "60%", 1),
        ("space_digest", "about 70 % are, not 60%", "60%", 0.5),
        ("space_digest", "40.5%", "60.5", 0.25),
        ("space_digest", "about 60", "60%", 0),
        ("book_sum_sort", "3, 1, 2", "3, 1, 2", 1),
        ("book_sum_sort", "2, 1, 3", "3, 1, 2", 0),
        ("book_sum_sort", "1, 3, 2", "3, 1, 2", 2 / 3),
        ("book_sum_sort", "3, 1", "3, 1, 2", 0),
        ("book_sum_sort", "3, 1, 2, 2", "3, 1, 2", 0),
        ("book_sum_sort", "", "", 0),
    ],
)
def test_zeroscrolls_rules(task, prediction, reference, expected):
    assert zeroscrolls.score("zeroscrolls/" + task, prediction, reference) == pytest.approx(
        expected
    )


def test_a_reference_without_a_letter_is_refused_and_never_scored_as_wrong(tmp_path):
    with pytest.raises(UserError, match="'yes' names no letter A to D"):
        zeroscrolls.score("quality", "B", ["B", "yes"])
    row = {"id": "1", "input": "text query", "truncation_seperator": "", "output": 5}
    places = {"document_start_index": 0, "document_end_index": 4}
    places |= {"query_start_index": 5, "query_end_index": 10}
    file = tmp_path / "quality.jsonl"
    file.write_text(json.dumps(row | places), encoding="utf-8")
    with pytest.raises(UserError, match=r"quality.jsonl, line 1: "):
        tasks.read(file)


def test_zeroscrolls_summaries_take_the_geometric_mean_of_three_kinds():
    prediction, reference = "the cat was found under the bed", "the cat was under the bed"
    expected = (0.923076923076923 * 0.7272727272727272 * 0.923076923076923) ** (1 / 3)
    for task in ("gov_report", "summ_screen_fd", "qmsum", "squality"):
        score = zeroscrolls.score(task, prediction, ["nothing shared", reference])
        assert score == pytest.approx(expected)
        assert zeroscrolls.score(task, reference, reference) == pytest.approx(1)
    assert zeroscrolls.geometric_mean([]) == 0


def test_zeroscrolls_names_its_tasks_and_the_unverified_ones():
    assert len(zeroscrolls.METRICS) == 10
    assert set(zeroscrolls.UNVERIFIED) < set(zeroscrolls.METRICS)
    with pytest.raises(UserError, match=r"unknown ZeroSCROLLS task 'x'.*gov_report"):
        zeroscrolls.score("x", "", "")
    with pytest.raises(UserError, match="holds no percentage"):
        zeroscrolls.score("space_digest", "5%", "none")


def test_summaries_are_scored_sentence_by_sentence_with_stems():
    reference = "The mills closed. Mr. Hill left the town."
    prediction = "Mr. Hill leaves the town. The mill closes."
    scores = summaries.score("xsum", prediction, reference)
    assert set(scores) == {"rouge1", "rouge2", "rougeL", "rougeLsum"}
    # the order of sentences costs rougeL, not rougeLsum; "leaves" and "left" differ
    assert scores["rougeLsum"] == pytest.approx(7 / 8)
    assert scores["rougeL"] < scores["rougeLsum"]
    assert summaries.sentences_on_lines(reference) == "The mills closed.\nMr. Hill left the town."
    assert summaries.score("cnn_dailymail", reference, reference)["rougeLsum"] == 1


def test_government_reports_have_both_flavours():
    reference = "The mills closed. The town shrank."
    scores = summaries.score("gov_report", reference, ["none", reference])
    assert scores["rouge_l_pltrdy"] == pytest.approx(1, abs=1e-8)
    assert set(summaries.score("gov_report", "", reference).values()) == {0.0}
    with pytest.raises(UserError, match=r"unknown summarisation task 'x'.*xsum"):
        summaries.score("x", "", "")


def test_keyword_recall():
    assert metrics.keyword_recall("Eat a sandwich", "eat a sandwich in the park") == 0.5
    assert metrics.keyword_recall("sandwich", "") == 0


def test_deviating_scores_of_other_harnesses(golden):
    for case in golden("benchmarks", "catekv_metrics"):
        inputs = case["inputs"]
        if inputs["fn"] == "string_match_part":
            value = compat.string_match_part_catekv(inputs["pred"], inputs["ref"])
            assert value == case["expected"]["official"]
    for case in golden("benchmarks", "string_match_part_vs_lm_eval"):
        value = compat.string_match_part_lm_eval(case["inputs"]["pred"], case["inputs"]["refs"])
        assert value == case["expected"]["lm_eval"]


def test_deviations_are_the_known_defects():
    assert compat.string_match_part_catekv("", ["Paris"]) == 1
    assert metrics.string_match_part("", ["Paris"]) == 0
    assert compat.string_match_part_lm_eval("a b", ["a", "zzz"]) == 0.5
    assert compat.clean_kvpress("one\ntwo") == "onetwo"
    assert metrics.clean("one\ntwo") == "one\ntwo"
    both = "The correct answer is (A). No, The correct answer is B"
    assert compat.names_answer_kvpress(both, "A") == compat.names_answer_kvpress(both, "B") == 1
    assert compat.names_answer_kvpress(both, "C") == 0
