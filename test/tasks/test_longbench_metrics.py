"""LongBench: metrics, task rules, buckets, averages, letters of v2, against the published code."""

from __future__ import annotations

import builtins
import sys
from random import Random

import pytest

from catekv.errors import UserError
from catekv.tasks import metrics
from catekv.tasks.metrics import chinese, longbench, longbench_tables, longbench_v2

CLASSES = ["Date", "Individual", "Other location", "Location", "City", "Other entity", "Other"]


@pytest.fixture
def segmenter():
    pytest.importorskip("jieba", reason="Chinese scores need jieba: pip install 'catekv[zh]'")


def _english_cases(cases):
    return [case for case in cases if not case["inputs"]["fn"].endswith("zh_score")]


PUBLISHED_NAMES = {
    "qa_f1_score": metrics.qa_f1,
    "rouge_score": metrics.rouge_l_pltrdy,
    "count_score": metrics.count_score,
    "retrieval_score": metrics.retrieval_score,
    "code_sim_score": metrics.edit_similarity,
    "classification_score": metrics.classification,
    "rouge_zh_score": metrics.rouge_l_zh,
    "qa_f1_zh_score": metrics.qa_f1_zh,
}


def _check(case):
    inputs = case["inputs"]
    score = PUBLISHED_NAMES[inputs["fn"]]
    value = score(inputs["pred"], inputs["gold"], **inputs.get("kwargs", {}))
    assert value == pytest.approx(case["expected"]["value"], abs=1e-9), case["id"]


def test_published_metrics(golden):
    for case in _english_cases(golden("benchmarks", "longbench_metric")):
        _check(case)


def test_published_chinese_metrics(golden, segmenter):
    cases = golden("benchmarks", "longbench_metric")
    chinese_cases = [case for case in cases if case not in _english_cases(cases)]
    assert chinese_cases
    for case in chinese_cases:
        _check(case)


def test_published_backends_of_edit_similarity(golden):
    for case in golden("benchmarks", "edit_similarity"):
        first, second = case["inputs"]["a"], case["inputs"]["b"]
        expected = case["expected"]
        assert metrics.text_ratio(first, second) == expected["fuzzywuzzy_difflib_ratio"] / 100
        rounded = expected["python_Levenshtein_ratio_x100_rounded"] / 100
        assert metrics.text_ratio(first, second, "indel") == rounded
        assert 100 * metrics.indel_ratio(first, second) == pytest.approx(
            expected["rapidfuzz_ratio"], abs=1e-9
        )


def test_published_task_scores(golden):
    for case in golden("benchmarks", "longbench_scorer"):
        inputs = case["inputs"]
        scores = [
            longbench.score(inputs["dataset"], prediction, answers, inputs.get("all_classes"))
            for prediction, answers in zip(inputs["preds"], inputs["answers"], strict=True)
        ]
        if inputs.get("mode") == "e":
            parts = longbench_tables.bucket_scores(scores, inputs["lengths"])
            assert {name: part.value for name, part in parts.items()} == case["expected"]["value"]
        else:
            assert longbench_tables.percent(scores) == case["expected"]["value"]


def test_published_letters_of_v2(golden):
    for case in golden("benchmarks", "longbench_v2_answer"):
        response, expected = case["inputs"]["response"], case["expected"]
        assert longbench_v2.extract_answer(response) == expected["answer"], case["id"]
        accepted = metrics.compat.names_answer_kvpress(response, "B")
        assert accepted == expected["kvpress_accepts_B"], case["id"]


def test_count_compares_digit_runs_as_strings():
    assert metrics.count_score("12 of 12 or 13", "12") == pytest.approx(2 / 3)
    assert metrics.count_score("012", "12") == 0
    assert metrics.count_score("none", "12") == 0


def test_retrieval_in_both_languages():
    assert metrics.retrieval_score("Paragraph 7 or Paragraph 12", "Paragraph 12") == 0.5
    assert metrics.retrieval_score("段落12", "段落12", "zh") == 1
    with pytest.raises(UserError, match="names no paragraph"):
        metrics.retrieval_score("12", "12")
    with pytest.raises(UserError, match="valid: en, zh"):
        metrics.retrieval_score("12", "12", "fr")


@pytest.mark.parametrize(
    ("prediction", "reference", "published", "strict"),
    [
        ("Individual", "Individual", 1, 1),
        ("Location", "Other location", 0, 0),
        # "Location" is no part of "Other location" (capital), so both names count
        ("Other location, Location", "Other location", 0.5, 0.5),
        ("nothing", "Date", 0, 0),
    ],
)
def test_classification(prediction, reference, published, strict):
    assert metrics.classification(prediction, reference, CLASSES) == published
    assert metrics.classification(prediction, reference, CLASSES, strict=True) == strict


def test_classification_skips_the_name_after_a_removed_one_unless_strict():
    classes = ["a", "ab", "abc"]
    # "a" is removed, so the loop passes over "ab" and both "ab" and "abc" stay
    assert metrics.classification("abc", "abc", classes) == 0.5
    assert metrics.classification("abc", "abc", classes, strict=True) == 1


def test_edit_similarity_reads_the_first_line_of_code():
    answer = "\n\n# comment\n`x`\n    return a + b\nfoo"
    assert metrics.edit_similarity(answer, "    return a+b") == 0.93
    assert metrics.edit_similarity("// only comment", "x = 1") == 0
    assert metrics.edit_similarity("// only comment", "") == 1
    assert metrics.text_ratio("tide", "diet") == 0.25
    assert metrics.text_ratio("tide", "diet", "indel") == 0.5
    with pytest.raises(UserError, match="valid: difflib, indel"):
        metrics.text_ratio("tide", "diet", "levenshtein")


def test_only_some_tasks_are_cut_to_their_first_line():
    assert longbench.score("triviaqa", "\n\nParis\nRome", ["Rome"]) == 0
    assert longbench.score("triviaqa", "\n\nParis\nRome", ["Paris"]) == 1
    assert longbench.score("hotpotqa", "Paris\nRome", ["Rome"]) == pytest.approx(2 / 3)
    # other white space stays, where kvpress strips it
    assert longbench.first_line(" \nParis") == " "
    assert metrics.compat.first_line_kvpress(" \nParis") == "Paris"


def test_every_task_has_a_score_and_takes_the_best_reference(segmenter):
    references = {
        "count": ["4", "12"],
        "retrieval": ["Paragraph 4", "Paragraph 12"],
        "retrieval_zh": ["段落4", "段落12"],
        "classification": ["Date", "City"],
    }
    assert len(longbench.METRICS) == 21
    for task, metric in longbench.METRICS.items():
        answers = references.get(metric, ["something else", "今天天气很好 return 12"])
        perfect = longbench.score(f"longbench/{task}", answers[1], answers, CLASSES)
        assert perfect == pytest.approx(1, abs=1e-8), task
        assert longbench.score(task, "", answers, CLASSES) == 0, task


def test_task_rules_name_what_is_missing():
    with pytest.raises(UserError, match=r"unknown LongBench task 'x'.*narrativeqa"):
        longbench.score("x", "", [""])
    with pytest.raises(UserError, match="needs its class names"):
        longbench.score("trec", "Date", ["Date"])


def test_chinese_normalisation_drops_signs_and_spaces():
    assert metrics.chinese.normalise_chinese(" 《A，b》。 「c」! ") == "《abc"  # noqa: RUF001


def test_chinese_f1_over_words_and_over_characters(segmenter):
    assert metrics.qa_f1_zh("今天天气很好。", "今天天气很好") == 1
    # 今天天气 / 很 / 好 and 今天天气 / 不错 share one word
    assert metrics.qa_f1_zh("今天天气很好", ["今天", "今天天气不错"]) == pytest.approx(0.4)
    assert metrics.character_f1_zh("今天", ["明天"]) == 0.5
    assert metrics.rouge_l_zh("今天天气很好。", "今天的天气不错。") == pytest.approx(
        0.22222221728395072, abs=1e-12
    )


def test_without_jieba_the_message_names_the_extra(monkeypatch):
    real = builtins.__import__

    def missing(name, *rest, **options):
        if name == "jieba":
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.delitem(sys.modules, "jieba", raising=False)
    monkeypatch.setattr(builtins, "__import__", missing)
    chinese._segmenter.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'catekv\[zh\]'"):
        metrics.qa_f1_zh("今天", "今天")
    chinese._segmenter.cache_clear()


def test_buckets_by_length_and_an_empty_one():
    parts = longbench_tables.bucket_scores([1, 1, 0, 1], [3999, 4000, 7999, 8000])
    assert {name: part.value for name, part in parts.items()} == {
        "0-4k": 100.0,
        "4-8k": 50.0,
        "8k+": 100.0,
    }
    empty = longbench_tables.bucket_scores([1], [10])["8k+"]
    assert (empty.value, empty.number) == (None, 0)
    with pytest.raises(UserError, match="2 scores but 1 lengths"):
        longbench_tables.bucket_scores([1, 1], [10])


def test_averages_keep_the_languages_apart():
    assert len(longbench_tables.ENGLISH) == 16
    assert len(longbench_tables.CHINESE) == 5
    assert set(longbench_tables.ENGLISH + longbench_tables.CHINESE) == set(longbench.METRICS)
    assert len(longbench_tables.EVEN) == 13
    assert set(longbench_tables.EVEN) < set(longbench_tables.ENGLISH)
    scores = {"lcc": 60.0, "repobench-p": 40.0, "hotpotqa": 20.0, "lsht": 10.0}
    english = longbench_tables.averages(scores)
    assert english["code"] == (50.0, 2, 2)
    assert english["multi-document"] == (20.0, 1, 3)
    assert english["few-shot"] == (None, 0, 3)
    assert english["tasks"] == (40.0, 3, 16)
    assert english["categories"] == (35.0, 2, 6)
    chinese_means = longbench_tables.averages(scores, "chinese")
    assert chinese_means["tasks"] == (10.0, 1, 5)
    assert "code" not in chinese_means
    with pytest.raises(UserError, match="valid: english, chinese"):
        longbench_tables.averages(scores, "zh")


@pytest.mark.parametrize(
    ("response", "letter", "strict"),
    [
        ("**The correct answer is (B)**", "B", "B"),
        ("The correct answer is A. The correct answer is (C)", "C", "C"),
        ("The correct answer is Berlin", "B", None),
        ("The correct answer is (E)", None, None),
        ("the correct answer is A", None, None),
        ("", None, None),
    ],
)
def test_letters_of_v2(response, letter, strict):
    assert longbench_v2.extract_answer(response) == letter
    assert longbench_v2.extract_answer(response, strict=True) == strict


def test_v2_scores_and_compensation():
    assert longbench_v2.score("The correct answer is (B)", "B") == 1
    assert longbench_v2.score("The correct answer is (B)", "A", compensated=True) == 0
    assert longbench_v2.score("I pick D", "D") == 0
    assert longbench_v2.score("I pick D", "D", compensated=True) == 0.25


def test_v2_report_by_groups():
    rows = [
        longbench_v2.Row(1, "easy", "short"),
        longbench_v2.Row(0, "hard", "short", truncated=True),
        longbench_v2.Row(1, "hard", "medium"),
    ]
    report = longbench_v2.report(rows)
    assert report.scores == {
        "overall": 66.7,
        "easy": 100.0,
        "hard": 50.0,
        "short": 50.0,
        "medium": 100.0,
        "long": None,
    }
    assert report.counts["long"] == 0
    assert report.truncated == 33.3
    assert longbench_v2.report([]).truncated is None


def test_scores_stay_between_zero_and_one():
    random = Random(2)
    alphabet = [
        "Date",
        "Paragraph 3",
        "12",
        "def f(x):",
        "# no",
        "\n",
        "the",
        ".",
        "ABC",
        "Location",
    ]

    def text() -> str:
        return " ".join(random.choices(alphabet, k=random.randint(0, 8)))

    for _ in range(200):
        prediction, reference = text(), text()
        values = [
            metrics.qa_f1(prediction, reference),
            metrics.keyword_recall(prediction, reference),
            metrics.count_score(prediction, "12"),
            metrics.retrieval_score(prediction, "Paragraph 3"),
            metrics.classification(prediction, "Location", CLASSES),
            metrics.edit_similarity(prediction, reference),
            metrics.edit_similarity(prediction, reference, "indel"),
        ]
        assert all(0 <= value <= 1 for value in values)
        assert metrics.text_ratio(reference, reference) == 1
        if metrics.normalise_answer(reference):
            assert metrics.qa_f1(reference, reference) == 1
            assert metrics.keyword_recall(reference, reference) == 1
