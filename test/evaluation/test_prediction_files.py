"""Scores of prediction files: the published numbers of real ones, layouts and bad input."""

from __future__ import annotations

import json

import pytest

from catekv.errors import UserError
from catekv.evaluation.predictions.scores import read_predictions, rescore
from catekv.tasks import metrics
from catekv.tasks.metrics import infinitebench, longbench, longbench_tables


@pytest.fixture
def segmenter():
    pytest.importorskip("jieba", reason="Chinese scores need jieba: pip install 'catekv[zh]'")


@pytest.fixture
def written(tmp_path):
    """``written(name, rows)``: a JSONL file, or with a mapping the layout of MiniLongBench."""

    def write(name, rows):
        file = tmp_path / name
        lines = json.dumps(rows) if isinstance(rows, dict) else "\n".join(map(json.dumps, rows))
        file.write_text(lines, encoding="utf-8")
        return file

    return write


#: A task for every rule of LongBench that the reference numbers know.
TASK_OF_RULE = {
    "qa_f1_score": "qasper",
    "rouge_score": "gov_report",
    "rouge_zh_score": "vcsum",
    "count_score": "passage_count",
    "retrieval_score": "passage_retrieval_en",
    "code_sim_score": "lcc",
    "classification_score": "trec",
}


def test_reference_values_of_longbench_in_both_layouts(golden, written, segmenter):
    for case in golden("benchmarks", "longbench_metric"):
        inputs, expected = case["inputs"], case["expected"]["value"]
        task, classes = TASK_OF_RULE[inputs["fn"]], inputs.get("kwargs", {}).get("all_classes")
        row = {"pred": inputs["pred"], "answers": [inputs["gold"]], "all_classes": classes}
        assert rescore(written(f"{task}.jsonl", [row])).mean == pytest.approx(expected), case["id"]
        gold = {"answers": row["answers"], "all_classes": classes}
        entry = {"origin_prompt": "-", "prediction": inputs["pred"], "gold": gold, "time": 1.0}
        mini = rescore(written(f"MiniLongBench_{task}.json", {"0": entry}))
        assert (mini.task, len(mini.scores)) == (task, 1)
        assert mini.mean == pytest.approx(expected), case["id"]


def test_reference_values_of_infinitebench_in_a_file(golden, written):
    for case in golden("benchmarks", "infinitebench_metric"):
        inputs, expected = case["inputs"], case["expected"]["value"]
        silent = {"id": 8, "prediction": "", "ground_truth": inputs["label"]}
        right = {"id": 3, "prediction": inputs["pred"], "ground_truth": inputs["label"]}
        result = rescore(written(f"{inputs['model']}_{inputs['task']}.jsonl", [silent, right]))
        assert (result.task, result.scores[0]) == (inputs["task"], 0.0)
        assert result.points == pytest.approx(expected), case["id"]
        assert result.mean == pytest.approx(expected / 2), case["id"]


def test_published_scores_of_longbench_files(golden, published_files, segmenter):
    for case in golden("benchmarks", "longbench_file"):
        inputs, expected = case["inputs"], case["expected"]
        result = rescore(published_files.parent / inputs["file"])
        assert result.task == inputs["dataset"]
        assert len(result.scores) == expected["n"]
        assert result.percent == pytest.approx(expected["score"], abs=0.005), case["id"]


def test_published_scores_of_infinitebench_files(golden, published_files):
    for case in golden("benchmarks", "infinitebench_file"):
        inputs, expected = case["inputs"], case["expected"]
        result = rescore(published_files.parent / inputs["file"])
        assert result.task == inputs["task"]
        assert len(result.scores) == expected["n"]
        assert result.mean == pytest.approx(expected["score"], abs=1e-9), case["id"]
        assert result.points == pytest.approx(expected["sum"], abs=1e-9), case["id"]


def test_every_real_file_can_be_scored(published_files, segmenter):
    mini = sorted((published_files / "longbench" / "mini").glob("*.json"))
    results = [rescore(file) for file in mini]
    assert {result.task for result in results} == set(longbench.METRICS)
    assert sum(len(result.scores) for result in results) == 237
    others = sorted((published_files / "infinitebench_preds").glob("*.jsonl"))
    results += [rescore(file) for file in others]
    assert {result.task for result in results[len(mini) :]} < set(infinitebench.TASKS)
    assert all(0 <= score <= 1 for result in results for score in result.scores)


def test_prefix_baseline_on_multi_news(golden, published_files):
    file = published_files / "longbench" / "multi_news.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for case in golden("benchmarks", "multi_news_prefix"):
        first, last = case["inputs"]["rows"]
        scores = [
            longbench.score("multi_news", row["context"][:1200], row["answers"])
            for row in rows[first:last]
        ]
        assert longbench_tables.percent(scores) == pytest.approx(
            case["expected"]["score"], abs=0.005
        )


def test_every_kind_of_reference_number_has_a_test(golden_folder, request):
    content = json.loads((golden_folder / "benchmarks.json").read_text())
    source = "".join(
        file.read_text(encoding="utf-8") for file in request.path.parents[1].rglob("test_*.py")
    )
    kinds = {case["kind"] for case in content["cases"]}
    assert [kind for kind in sorted(kinds) if f'golden("benchmarks", "{kind}")' not in source] == []


def test_mini_layout_in_numeric_order(written):
    rows = {
        "10": {"prediction": "City", "gold": {"answers": ["City"], "all_classes": ["City"]}},
        "9": {"prediction": "Date", "gold": {"answers": ["City"], "all_classes": ["City"]}},
    }
    result = rescore(written("MiniLongBench_trec.json", rows))
    assert (result.task, result.scores, result.percent) == ("trec", (0.0, 1.0), 50.0)
    assert result.groups == {}


def test_longbench_layout_with_buckets(written):
    rows = [
        {"pred": "rome", "answers": ["Rome"], "all_classes": None, "length": 3999},
        {"pred": "oslo", "answers": ["Rome"], "all_classes": None, "length": 8000},
    ]
    result = rescore(written("hotpotqa_e.jsonl", rows))
    assert result.task == "hotpotqa"
    assert result.groups == {"0-4k": (100.0, 1, 1), "4-8k": (None, 0, 0), "8k+": (0.0, 1, 1)}


def test_longbench_v2_layout(written):
    right = {"_id": "a", "response": "The correct answer is (B)", "answer": "B"}
    wrong = {"_id": "b", "response": "The correct answer is Cats", "answer": "C"}
    rows = [row | {"difficulty": "easy", "length": "short"} for row in (right, wrong)]
    file = written("result.jsonl", rows)
    assert rescore(file).groups["overall"] == (100.0, 2, 2)
    assert rescore(file).groups["hard"] == (None, 0, 0)
    assert rescore(file, strict=True).groups["easy"] == (50.0, 2, 2)


def test_infinitebench_layout_with_model_and_reasons(written):
    rows = [{"id": 7, "prediction": "9, 1, 2", "ground_truth": [1, 2]}]
    assert rescore(written("gpt4_math_calc.jsonl", rows)).mean == 1
    assert rescore(written("gpt4_math_calc.jsonl", rows), model="other").mean == 0
    rows = [{"id": 7, "prediction": "3.5", "ground_truth": [3]}]
    result = rescore(written("m_math_find.jsonl", rows))
    assert result.mean == 0
    assert list(result.reasons) == [7]


def test_code_scores_name_their_backend(written):
    file = written("lcc.jsonl", [{"pred": "tide", "answers": ["diet"]}])
    assert (rescore(file).backend, rescore(file).mean) == ("difflib", 0.25)
    other = rescore(file, backend="indel")
    assert (other.backend, other.mean) == ("indel", 0.5)
    assert rescore(written("qasper.jsonl", [{"pred": "a", "answers": ["b"]}])).backend is None


def test_chinese_scores_name_their_segmenter(written, segmenter):
    file = written("dureader.jsonl", [{"pred": "今天", "answers": ["今天"]}])
    assert rescore(file).backend.startswith("jieba ")


def test_the_task_can_be_given(written):
    file = written("mine.jsonl", [{"pred": "3", "answers": ["3"]}])
    assert read_predictions(file).task == ""
    assert rescore(file, "longbench/passage_count").mean == 1
    with pytest.raises(UserError, match="holds no task; pass task="):
        rescore(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no row"),
        ('{"pred": "a", "answers": ["a"]}\n{"pred": "b", "ans', "line 2: not a complete JSON"),
        ('{"pred": "a", "answers": ["a"]}\n{"pred": "b"}', "line 2: field 'answers' is missing"),
        ('{"pred": null, "answers": ["a"]}', "line 1: the prediction is None"),
        ('{"pred": "a", "answers": []}', "line 1: the references are not a list"),
        ('{"question": "a"}', "layout not known"),
        ("[1, 2]", "entry 0: expected a JSON object"),
        (
            '{"0": {"prediction": "a", "gold": ["a"]}, "1": {}}',
            "entry '1': field 'gold' is missing",
        ),
        (
            '{"id": 3, "prediction": "a", "ground_truth": "a"}\n'
            '{"id": 3, "prediction": "b", "ground_truth": "b"}',
            "line 2: index 3 comes twice",
        ),
    ],
)
def test_bad_files_are_refused_with_file_and_line(tmp_path, content, message):
    file = tmp_path / "qasper.jsonl"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        rescore(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("m_passkey.jsonl", {"id": [1], "prediction": "a", "ground_truth": "a"}, "the id is"),
        ("m_math_find.jsonl", {"id": 1, "prediction": "3", "ground_truth": "x"}, "is not a number"),
        ("m_longbook_qa_eng.jsonl", {"id": 1, "prediction": "3", "ground_truth": [5]}, "'int'"),
        ("passage_retrieval_en.jsonl", {"pred": "3", "answers": ["3"]}, "names no paragraph"),
        ("trec.jsonl", {"pred": "3", "answers": ["3"]}, "needs its class names"),
    ],
)
def test_references_that_a_rule_cannot_read_are_named_with_file_and_line(
    written, name, row, message
):
    with pytest.raises(UserError, match=rf"{name}, line 1: .*{message}"):
        rescore(written(name, [row]))


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        rescore(tmp_path / "none.jsonl")
    (tmp_path / "qasper.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot read"):
        rescore(tmp_path / "qasper.jsonl")


def test_names_stay_importable_from_one_place():
    for name in metrics.__all__:
        assert getattr(metrics, name) is not None
