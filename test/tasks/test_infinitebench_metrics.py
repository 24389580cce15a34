"""InfiniteBench: the published rule of every task, and ours where that raises."""

from __future__ import annotations

import pytest

from catekv.errors import UserError
from catekv.tasks.metrics import infinitebench


def test_published_scores(golden):
    for case in golden("benchmarks", "infinitebench_metric"):
        inputs, expected = case["inputs"], case["expected"]
        value = infinitebench.score(
            inputs["task"], inputs["pred"], inputs["label"], inputs["model"]
        )
        wanted = expected["ours"] if "official_error" in expected else expected["value"]
        assert value == pytest.approx(wanted, abs=1e-9), case["id"]


@pytest.mark.parametrize(
    ("task", "prediction", "label", "expected"),
    [
        ("passkey", "The key 71432. 99", "71432", 1),
        ("passkey", "The key 71432. 99", ["71432"], 1),
        ("passkey", "99 and 71432", "71432", 0),
        ("passkey", "no digits", "71432", 0),
        ("number_string", "0012 is it", ["12"], 0),
        ("kv_retrieval", '"key": "ab-12", so', "ab-12", 1),
        ("kv_retrieval", "xab-12", "ab-12", 0),
        ("code_run", "so it is -12.", [-12], 1),
        ("code_run", "12 is it", [12], 0),
        ("code_run", "", [12], 0),
        ("math_find", "about 3.5 or 4", 3.5, 1),
        ("math_find", "the 4 largest", [4], 1),
        ("math_find", "none", [4], 0),
        ("math_calc", "1, 2, 9", [1, 2, 3], 2 / 3),
        ("math_calc", "01, 2, 3", [1, 2, 3], 1),
        ("math_calc", "9, 1, 2, 3", [1, 2, 3], 0),
        ("longbook_choice_eng", "B. foo", ["foo", "B"], 1),
        ("longbook_choice_eng", "A. foo", ["foo", "B"], 0),
        ("longbook_choice_eng", " B: foo", ["foo", "B"], 1),
        ("longbook_choice_eng", "foo", ["foo", "B"], 1),
        ("longbook_choice_eng", "I think the answer is: foo!", ["foo", "B"], 1),
        ("longbook_choice_eng", "I think the answer is  B", ["foo", "B"], 1),
        ("longbook_choice_eng", "I say: the answer is", ["foo", "B"], 0),
        ("longbook_choice_eng", "maybe C or B", ["foo", "B"], 0),
        ("longbook_choice_eng", "it is B, maybe C", ["foo", "B"], 1),
        ("longbook_choice_eng", "it is BC or B", ["foo", "B"], 0),
        ("longbook_choice_eng", "", ["foo", "B"], 0),
        ("code_debug", "A. f", ["f", "A"], 1),
        ("code_debug", "A: f", ["f", "A"], 1),
        ("code_debug", "A f", ["f", "A"], 0),
        ("code_debug", "**The error is:**\n\nOption A, because", ["f", "A"], 1),
        ("code_debug", "the answer is: f", ["f", "A"], 1),
        ("code_debug", "the answer is: g", ["f", "A"], 0),
        ("code_debug", "the answer is:", ["f", "A"], 0),
        ("longdialogue_qa_eng", "it is Rick.", ["RICK", "RICK BLAINE"], 1),
        ("longdialogue_qa_eng", "it is Blaine", ["RICK", "BLAINE"], 0),
        ("longbook_qa_eng", "the Eiffel tower", ["Rome", "Eiffel Tower"], 1),
        ("longbook_qa_chn", "北京，", ["北京"], 1),  # noqa: RUF001
        ("longbook_sum_eng", "He left.\nShe stayed.", ["She stayed.\nHe left."], 1),
    ],
)
def test_rules(task, prediction, label, expected):
    rated = infinitebench.rate("infinitebench/" + task, prediction, label)
    assert rated.value == pytest.approx(expected)
    assert rated.reason is None


def test_gpt4_repeats_the_first_term():
    assert infinitebench.score("math_calc", "9, 1, 2, 3", [1, 2, 3], "gpt4") == 1


def test_where_the_original_raises_the_score_is_zero_with_a_reason():
    rated = infinitebench.rate("math_find", "about 3.5", 3)
    assert rated.value == 0
    assert "3.5" in rated.reason
    rated = infinitebench.rate("math_find", "7" * 5000, 7)
    assert rated.value == 0
    assert rated.reason
    assert infinitebench.score("math_calc", "7" * 5000, [7]) == 0
    assert infinitebench.score("code_run", "7" * 5000, [7]) == 0


def test_every_task_scores_an_empty_answer_zero():
    labels = {"math_find": 1, "math_calc": [1], "longbook_choice_eng": ["foo", "B"]}
    labels["code_debug"] = ["f", "A"]
    assert len(infinitebench.TASKS) == 12
    for task in infinitebench.TASKS:
        assert infinitebench.score(task, "", labels.get(task, ["x"])) == 0, task


def test_wrong_input_is_named():
    with pytest.raises(UserError, match=r"unknown InfiniteBench task 'x'.*passkey"):
        infinitebench.rate("x", "", "")
    with pytest.raises(UserError, match="is not a number"):
        infinitebench.rate("math_find", "1", "1")
    with pytest.raises(UserError, match="is not a list of numbers"):
        infinitebench.rate("math_calc", "1", 1)
