"""Scores and files of SimCalKV's comparison, and its methods at a ratio."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from catekv import methods
from catekv.errors import UserError
from catekv.methods import ModelShape
from experiments.simcalkv.benchmarks import Example
from experiments.simcalkv.bleu import corpus_bleu, require_sacrebleu
from experiments.simcalkv.comparison import Side
from experiments.simcalkv.kv_methods import Choice, calibrations
from experiments.simcalkv.results import (
    COLUMNS,
    Pair,
    Results,
    family_of,
    refuse_other_model,
    summary,
    write,
)
from experiments.simcalkv.scores import dataset_metrics

SHAPE = ModelShape(layers=4, query_heads=8, kv_heads=4, head_dim=16)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("Is 3.5, not 4!", "Is 3.5 , not 4 !"),
        ("a-b 2-3 &quot;x&quot;", 'a-b 2 - 3 " x "'),
        ("f(x)=y;", "f ( x ) = y ;"),
    ],
)
def test_bleu_counts_words_of_mteval(answer: str, words: str) -> None:
    assert corpus_bleu([answer], [words]) == pytest.approx(1.0)
    assert corpus_bleu([answer.upper()], [words]) < 1.0


def test_bleu_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'catekv\[simcalkv\]'"):
        require_sacrebleu()


def test_bleu_by_hand() -> None:
    answer, reference = "the cat sat on the mat", "the cat sat on a mat"
    # 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 quadruples; equal length
    expected = (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert corpus_bleu([answer], [reference]) == pytest.approx(expected)
    # a short answer is punished, and sums over the corpus come before the division
    short = corpus_bleu(["the cat sat on"], [reference])
    assert short == pytest.approx(math.exp(1 - 6 / 4))
    both = corpus_bleu([answer, "the cat sat on"], [reference] * 2)
    counts = (9 / 10, 6 / 8, 4 / 6, 2 / 4)
    assert both == pytest.approx(math.prod(counts) ** 0.25 * math.exp(1 - 12 / 10))
    assert corpus_bleu(["dog"], [reference]) == 0.0
    assert corpus_bleu([""], [reference]) == 0.0
    assert corpus_bleu([], []) == 0.0


def example(*references: str, choices: tuple[str, ...] = ()) -> Example:
    return Example("a", [1, 2, 3], references, 8, choices=choices)


def test_metrics_have_the_published_names() -> None:
    found = dataset_metrics("xsum", ["a dog ran"], [example("a dog ran")])
    assert found == {"rouge": {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0, "rougeLsum": 1.0}}
    assert dataset_metrics("hotpotqa", ["Paris"], [example("London", "paris")]) == {"f1": 1.0}
    assert dataset_metrics("piqa", ["a", "b"], [example("a"), example("a")]) == {"accuracy": 0.5}
    code = dataset_metrics("lcc", ["return x + y ;"], [example("return x + y ;")])
    assert code == {"bleu": pytest.approx(1.0), "edit_similarity": 1.0}
    row = Example("a", [1], ("Food",), 8, classes=("Food", "Sport"))
    assert dataset_metrics("trec", ["Food"], [row]) == {"accuracy": 1.0}


def side(answer: str, memory: float, prefill: float, steps: int) -> Side:
    return Side(answer, memory, 0.6, prefill, 0.25, 2.0, steps)


def results(**changes) -> Results:
    pairs = [
        Pair(example("yes"), side("yes", 8.0, 1.0, 10), side("yes", 5.0, 1.5, 10)),
        Pair(example("yes"), side("no", 8.0, 2.0, 0), side("yes", 6.0, 2.5, 20)),
    ]
    given = {
        "dataset": "openbookqa",
        "label": "SimCalKV",
        "ratio": 0.4,
        "method": {"name": "simcalkv"},
        "model_name": "ckpt/one",
        "family": "llama",
        "pairs": pairs,
        "failed": [],
        "settings": {},
    }
    return Results(**{**given, **changes})


def test_the_summary_says_what_is_a_mean_and_what_a_sum() -> None:
    found = summary(results())
    assert found["metrics_before"] == {"accuracy": 0.5}
    assert found["metrics_after"] == {"accuracy": 1.0}
    assert found["avg_memory_saving_MB"] == 8.0 - 5.5
    # prefill, compression and decoding, on both sides
    assert found["time_before"] == found["means"]["time_before_s"] == 1.5 + 0.25 + 2.0
    assert found["sums"]["time_before_s"] == 7.5
    assert found["avg_time_saving_s"] == -0.5
    assert found["sums"]["decode_after_s"] == 4.0
    # an answer that ended at once has no throughput
    assert found["throughput_before"] == 5.0
    assert found["throughput_after"] == 7.5
    assert found["avg_throughput_improvement_tokens_s"] == 2.5
    assert found["same_answers"] == 1


def test_files_carry_the_ratio(tmp_path: Path) -> None:
    table, overview = write(tmp_path, results())
    assert table.name == "llama_results_openbookqa_SimCalKV_0.4.csv"
    assert overview.name == "llama_openbookqa_SimCalKV_0.4.json"
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == COLUMNS
    assert COLUMNS[-2:] == ("reference", "ratio")
    assert rows[1]["answer_before"] == "no"
    assert rows[1]["throughput_before_tokens_s"] == ""
    assert json.loads(overview.read_text())["compress_ratio"] == 0.4
    details = [json.loads(line) for line in table.with_suffix(".jsonl").open()]
    assert details[0]["after"]["compress_s"] == 0.25
    refuse_other_model(tmp_path / results().json_name, results().model_name)
    with pytest.raises(UserError, match="holds results of ckpt/one, not of ckpt/two"):
        refuse_other_model(tmp_path / results().json_name, "ckpt/two")
    assert [family_of(name) for name in ("llama", "qwen2", "mistral")] == [
        "llama",
        "qwen",
        "mistral",
    ]


def test_a_summary_of_nothing_but_failures(tmp_path: Path) -> None:
    found = summary(results(pairs=[], failed=[("3", "RuntimeError: no memory")]))
    assert found["samples"] == 0
    assert found["time_before"] is None
    assert found["failed"] == [{"id": "3", "error": "RuntimeError: no memory"}]


def test_published_names_stand_for_the_published_methods() -> None:
    expected = {
        "KeepKV": "keepkv",
        "CaM": "cam",
        "PyramidInfer": "pyramidinfer_kv",
        "simcalkv_cam": "simcalkv_cam",
        "H2O": "h2o",
    }
    for name, method in expected.items():
        assert Choice(name, 0.4).method().name == method
    made = Choice("SimCalKV", 0.3, 0.8, "logit").method()
    assert (made.ratio, made.threshold, made.calibration) == (0.3, 0.8, "logit")
    assert Choice("SimCalKV", 0.3, 0.8, "logit").label == "SimCalKV-logit-threshold0.8"
    assert Choice("simcalkv", 0.3, 0.0, "key_const").label == "SimCalKV"
    assert calibrations(["all"]) == ["key_const", "logit", "none"]
    assert calibrations(None) == [None]


def test_what_differs_has_another_name() -> None:
    labels = [
        Choice("SimCalKV", 0.3, preset="recommended").label,
        Choice("SimCalKV", 0.3, None, "key_const", "recommended").label,
        Choice("SimCalKV", 0.3, None, "none", "recommended").label,
        Choice("simcalkv_keepkv", 0.3).label,
        Choice("simcalkv_keepkv", 0.3, 0.0).label,
        Choice("KeepKV", 0.3, 0.0).label,
    ]
    assert labels == [
        "SimCalKV-recommended",
        "SimCalKV-recommended-key_const",
        "SimCalKV-recommended-none",
        "simcalkv_keepkv",
        "simcalkv_keepkv-threshold0",
        "KeepKV-threshold0",
    ]
    same = Choice("SimCalKV", 0.3, None, "logit", "recommended")
    assert same.label == "SimCalKV-recommended"


@pytest.mark.parametrize("name", ["KeepKV", "CaM", "h2o", "snapkv", "simcalkv_keepkv"])
@pytest.mark.parametrize("ratio", [0.0, 0.4, 0.29])
def test_every_method_keeps_what_the_ratio_leaves(name: str, ratio: float) -> None:
    choice = Choice(name, ratio)
    made = choice.of_length(choice.method(), 100, SHAPE)
    assert made.total_kept(100, SHAPE) == 16 * (100 - round(100 * ratio))


def test_pyramidinfer_gets_the_memory_as_nearly_as_its_shape_allows() -> None:
    shape = ModelShape(layers=32, query_heads=8, kv_heads=4, head_dim=16)
    for ratio in (0.1, 0.4):
        choice = Choice("PyramidInfer", ratio)
        made = choice.of_length(choice.method(), 2000, shape)
        total = 128 * round(2000 * (1 - ratio))
        assert 0.995 * total < made.total_kept(2000, shape) <= total
    whole = Choice("PyramidInfer", 0.0)
    assert whole.of_length(whole.method(), 300, shape).total_kept(300, shape) == 128 * 300
    # here the smallest share is not the smallest cache, which keeps 51 %
    half = Choice("PyramidInfer", 0.5)
    assert replace(half.method(), least_ratio=0.0).total_kept(1024, shape) > 128 * 512
    made = half.of_length(half.method(), 1024, shape)
    assert 0.995 * 128 * 512 < made.total_kept(1024, shape) <= 128 * 512
    low = Choice("PyramidInfer", 0.9)
    with pytest.raises(UserError, match="use a smaller --compress_ratio"):
        low.of_length(low.method(), 2000, shape)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice("SimCalKV", 1.1), r"ratio 1.1 is outside \[0, 1\]"),
        (Choice("KeepKV", 1.1), r"ratio 1.1 is outside \[0, 1\]"),
        (Choice("CaM", -0.1), "outside"),
        (Choice("SimCalKV", 0.4, 1.5), r"threshold 1.5 is outside \[-1, 1\]"),
        (Choice("SimCalKV", 0.4, None, "best"), "use key_const, logit, none"),
        (Choice("CaM", 0.4, None, "logit"), "CaM has no calibration"),
        (Choice("CaM", 0.4, 0.5), "has no option 'threshold'"),
        (Choice("KeepCV", 0.4), "unknown method 'keepcv'"),
    ],
)
def test_bad_choices_are_refused(choice: Choice, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choice.method()


def test_ratio_nothing_is_the_identity() -> None:
    made = Choice("SimCalKV", 0.0).method()
    assert made.total_kept(100, SHAPE) == 1600
    assert methods.from_dict(made.to_dict()) == made
