"""Summaries: what the numbers mean, and that they do not depend on how records came about."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from catekv.errors import UserError
from catekv.evaluation.records.records import Record, RunDirectory
from catekv.evaluation.report import report

METHODS = {
    "full": {"hash": "f", "name": "full"},
    "catekv": {"hash": "c", "name": "catekv"},
}
MANIFEST: dict[str, Any] = {
    "model": "tiny",
    "config_hash": "h",
    "configuration": {"model_hash": "w"},
    "methods": METHODS,
    "tasks": ["ruler/vt", "ruler/niah_single_1"],
    "lengths": [512],
    "questions": ["agnostic"],
}


def record(task: str, index: int, method: str, score: float | None, **changes: Any) -> Record:
    values: dict[str, Any] = {
        "task": task,
        "length": 512,
        "index": index,
        "method": method,
        "question": "agnostic",
        "method_hash": METHODS[method]["hash"],
        "sample_hash": f"{task}{index}",
        "prediction": "12345",
        "references": ("12345",),
        "wording": "small-1",
        "official": score,
        "strict": score,
        "scores": {} if score is None else {"catekv": score / 2},
        "kept_share": 1.0 if method == "full" else 0.5,
        "stored_bytes": 1 << (20 if method == "full" else 19),
        "new_tokens": 5,
        "decode_steps": 4,
        "prefill_seconds": 0.2,
        "decode_seconds": 0.4,
    }
    return Record(**{**values, **changes})


def records() -> list[Record]:
    found = []
    for index, (full, ours) in enumerate([(1.0, 1.0), (1.0, 0.5), (0.0, 0.0), (1.0, 1.0)]):
        found += [
            record("ruler/vt", index, "full", full),
            record("ruler/vt", index, "catekv", ours),
        ]
    found += [
        record("ruler/niah_single_1", 0, "full", 1.0),
        record("ruler/niah_single_1", 0, "catekv", 1.0),
        record("ruler/niah_single_1", 1, "full", 1.0),
        record(
            "ruler/niah_single_1", 1, "catekv", None, error={"type": "RuntimeError"}, prediction=""
        ),
        record("ruler/niah_single_1", 2, "full", 0.0, prediction="  "),
    ]
    return found


def cell(summary: dict[str, Any], task: str, method: str) -> dict[str, Any]:
    rows = [*summary["cells"], *summary["averages"]]
    (row,) = (row for row in rows if (row["task"], row["method"]) == (task, method))
    return dict(row)


def test_scores_differences_errors_and_nulls() -> None:
    summary = report.summarise(records(), MANIFEST)
    vt = cell(summary, "ruler/vt", "catekv")
    assert (vt["official"]["mean"], vt["difference"]["mean"], vt["count"]) == (62.5, -12.5, 4)
    assert (vt["errors"], vt["kept_share"]) == (0, 0.5)
    assert vt["metrics"] == {"catekv": 31.25}
    assert vt["time"]["decode_seconds_per_token"] == pytest.approx(0.1)
    needle = cell(summary, "ruler/niah_single_1", "catekv")
    assert (needle["count"], needle["errors"]) == (1, 1)
    assert needle["difference"]["mean"] == 0.0
    assert cell(summary, "ruler/niah_single_1", "full")["nulls"] == 1
    assert cell(summary, "ruler/vt", "full")["difference"] is None
    average = cell(summary, "average", "catekv")
    assert average["official"]["mean"] == pytest.approx((62.5 + 100) / 2)
    assert average["metrics"] == {"catekv": (31.25 + 50) / 2}
    assert average["difference"]["mean"] == pytest.approx(-12.5 / 2)


def test_the_summary_does_not_depend_on_the_order_of_the_records() -> None:
    shuffled = records()
    random.Random(0).shuffle(shuffled)
    assert report.summarise(shuffled, MANIFEST) == report.summarise(records(), MANIFEST)


def test_records_of_unknown_methods_are_left_out() -> None:
    foreign = record("ruler/vt", 0, "full", 0.0, method_hash="other")
    assert report.summarise([*records(), foreign], MANIFEST) == report.summarise(
        records(), MANIFEST
    )


def test_the_tables_name_the_wording_and_the_errors() -> None:
    summary = report.summarise(records(), MANIFEST)
    for markdown in (False, True):
        text = report.render(summary, markdown=markdown)
        assert "small-1" in text
        assert "1 measurements failed" in text
        assert "question asked after compression" in text
    lines = report.render(summary).splitlines()
    (row,) = (line for line in lines if line.startswith("ruler/vt"))
    assert row.split() == ["ruler/vt", "75.0", "62.5"]


def test_several_benchmarks_have_averages_of_their_own_before_the_one_of_all() -> None:
    other = [
        record(f"longbench/{task}", 0, "full", score, metadata={"data": "built-in"})
        for task, score in (("qasper", 0.2), ("trec", 0.4))
    ]
    text = report.render(report.summarise([*records(), *other], MANIFEST))
    averages = {
        line.split("  ")[0]: line.split() for line in text.splitlines() if "average" in line
    }
    assert averages["average of ruler"][3] == "70.8"
    assert averages["average of longbench"][3:] == ["30.0", "-"]


def test_generated_rows_are_never_taken_for_the_benchmark() -> None:
    def notes(data: str) -> str:
        row = record("longbench/qasper", 0, "full", 1.0, metadata={"data": data})
        return report.render(report.summarise([row], MANIFEST))

    assert "Data of longbench: generated rows" in notes("built-in")
    assert "generated rows" not in notes("file:qasper.jsonl:0123456789abcdef")
    drawn = record("ruler/vt", 0, "full", 1.0, metadata={"data": "built-in"})
    assert "generated rows" not in report.render(report.summarise([drawn], MANIFEST))


def test_the_page_is_well_formed_and_shows_every_method() -> None:
    named = {"full": METHODS["full"], "catekv": {**METHODS["catekv"]}}
    summary = report.summarise(records(), {**MANIFEST, "methods": named, "model": "a<b & c"})
    text = report.render_html(summary)
    root = ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>\n"))
    assert root.findtext("head/title") == "Compressed caches: a<b & c"
    svg = "{http://www.w3.org/2000/svg}"
    labels = [item.text for item in root.iter(f"{svg}text")]
    assert "full" in labels
    assert "catekv" in labels
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_an_average_over_fewer_tasks_is_marked() -> None:
    some = [r for r in records() if r.method == "full" or r.task == "ruler/vt"]
    text = report.render(report.summarise(some, MANIFEST))
    assert "62.5*" in text
    assert "* not over the same samples as the numbers beside it" in text


def test_means_and_differences_over_other_samples_are_counted_and_marked() -> None:
    summary = report.summarise(records(), MANIFEST)
    # catekv failed on sample 1 and has not come to sample 2
    assert [cell(summary, "ruler/niah_single_1", m)["missing"] for m in METHODS] == [0, 2]
    assert [cell(summary, "average", m)["missing"] for m in METHODS] == [0, 2]
    assert cell(summary, "average", "catekv")["unpaired"] == 0
    without = [r for r in records() if (r.method, r.index) != ("full", 0)]
    summary = report.summarise(without, MANIFEST)
    assert cell(summary, "ruler/vt", "catekv")["unpaired"] == 1
    assert cell(summary, "average", "catekv")["unpaired"] == 2
    assert "-16.7*" in report.render(summary)
    paired = [r for r in records() if r.task == "ruler/vt"]
    text = report.render(report.summarise(paired, MANIFEST))
    assert "*" not in text


def test_a_task_that_failed_throughout_does_not_count_as_averaged() -> None:
    failed = [
        record(r.task, r.index, r.method, None, error={"type": "RuntimeError"})
        if (r.task, r.method) == ("ruler/niah_single_1", "catekv")
        else r
        for r in records()
    ]
    summary = report.summarise(failed, MANIFEST)
    assert [cell(summary, "average", method)["tasks"] for method in METHODS] == [2, 1]
    page = report.render_html(summary)
    assert "Methods that lack whole tasks are not drawn" in page


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    directory = RunDirectory(tmp_path)
    directory.prepare({**MANIFEST, "samples": 4}, resume=True, overwrite=False)
    with directory:
        for one in records():
            directory.append(one)
    return tmp_path


def test_report_writes_all_files(run_folder: Path) -> None:
    summary = report.report(run_folder)
    assert json.loads((run_folder / "summary.json").read_text()) == summary
    assert (run_folder / "report.html").read_text() == report.render_html(summary)
    rows = list(csv.DictReader((run_folder / "summary.csv").open()))
    assert len(rows) == len(summary["cells"]) + len(summary["averages"])
    assert rows[0]["task"] == "ruler/vt"
    assert float(rows[0]["official_mean"]) == 75.0
    assert "| ruler/vt | 75.0 | 62.5 |" in (run_folder / "summary.md").read_text()


def test_rescoring_needs_no_model_and_replaces_wrong_scores(run_folder: Path) -> None:
    directory = RunDirectory(run_folder)
    assert cell(report.report(run_folder), "ruler/vt", "full")["official"]["mean"] == 75.0
    rescored = report.report(run_folder, rescore=True)
    assert cell(rescored, "ruler/vt", "full")["official"]["mean"] == 100.0
    assert all(r.official == 1.0 for r in directory.records().values() if r.prediction.strip())
    assert cell(report.report(run_folder), "ruler/vt", "full")["official"]["mean"] == 100.0


def test_official_exports(run_folder: Path) -> None:
    folders = report.export_official(run_folder)
    assert len(folders) == 2
    target = run_folder / "official" / "full" / "512-agnostic"
    (first, *_) = (target / "vt.jsonl").read_text().splitlines()
    assert json.loads(first)["pred"] == "12345"
    summary = list(csv.reader((target / "summary.csv").open()))
    assert summary[0] == ["Tasks", "niah_single_1", "vt"]
    assert summary[1] == ["Score", "66.67", "75.0"]
    assert summary[2] == ["Nulls", "1/3", "0/4"]
    submission = list(csv.reader((target / "submission.csv").open()))
    assert submission[0] == ["Task", "ID", "Prediction"]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="no run directory"):
            report.report(path)


def of_one_task(scores: list[float], **changes: Any) -> dict[str, Any]:
    """A summary of one task that the full cache solves, and catekv with these scores."""
    found = [record("ruler/vt", index, "full", 1.0) for index in range(len(scores))]
    found += [record("ruler/vt", i, "catekv", one, **changes) for i, one in enumerate(scores)]
    return report.summarise(found, MANIFEST)


def test_few_samples_tell_nothing_and_the_tables_say_so() -> None:
    summary = of_one_task([1.0, 0.0])
    assert "Too few samples to tell from full: catekv" in report.render(summary)
    assert "Too few samples to tell from full" in report.render_html(summary)
    assert cell(summary, "ruler/vt", "catekv")["difference"]["high"] > 0


@pytest.mark.parametrize(
    ("scores", "said"), [([0.0] * 8, "Below full: catekv"), ([1.0] * 60, "Not told apart")]
)
def test_enough_samples_tell(scores: list[float], said: str) -> None:
    summary = of_one_task(scores)
    assert "Too few samples" not in report.render(summary)
    assert said in report.render_html(summary)


def test_a_score_without_compression_is_marked_and_is_no_result() -> None:
    summary = of_one_task([1.0] * 60, kept_share=1.0, stored_bytes=1 << 20, full_bytes=1 << 20)
    assert cell(summary, "ruler/vt", "catekv")["untouched"] == 60
    assert cell(summary, "ruler/vt", "full")["untouched"] == 0
    for text in (report.render(summary), report.render_html(summary)):
        assert "catekv (nothing compressed)" in text
        assert "say nothing about the method" in text
        assert "Not told apart" not in text


@pytest.mark.parametrize(
    "changes",
    [
        {"asked_share": 0.1, "kept_share": 1.0},  # reads a part of what it keeps
        {"kept_share": 1.0, "stored_bytes": 1 << 18, "full_bytes": 1 << 20},  # stores fewer bits
    ],
)
def test_a_method_that_keeps_every_token_may_compress_all_the_same(changes: dict[str, Any]) -> None:
    assert cell(of_one_task([1.0] * 4, **changes), "ruler/vt", "catekv")["untouched"] == 0


def test_prompts_that_are_partly_too_short_to_compress_are_counted() -> None:
    found = [record("ruler/vt", index, "full", 1.0) for index in range(3)]
    found += [record("ruler/vt", 0, "catekv", 1.0, kept_share=1.0)]
    found += [record("ruler/vt", index, "catekv", 1.0) for index in (1, 2)]
    text = report.render(report.summarise(found, MANIFEST))
    assert "Nothing compressed: catekv in 1 of 3 samples" in text
    assert "(nothing compressed)" not in text
