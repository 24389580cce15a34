"""Columns that test a task: the references score 100, nothing scores 0, guesses about 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import save_tiny_checkpoint
from toy_tasks import register, toy_sample

from catekv import tasks
from catekv.commands import cli
from catekv.errors import UserError
from catekv.evaluation.records.records import Record, RunDirectory
from catekv.evaluation.run import sanity
from catekv.evaluation.run.batches import Unit
from catekv.evaluation.run.cells import build_cells
from catekv.evaluation.run.request import Request
from catekv.evaluation.run.runner import evaluate
from catekv.evaluation.run.session import open_model, settings_for
from catekv.evaluation.run.suites import suites
from catekv.model import CateKVModel
from catekv.tasks.registry import find


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> CateKVModel:
    return open_model(Request(model=str(checkpoint), device="cpu"))


def request(model: CateKVModel, *names: str, **changes: Any) -> Request:
    values: dict[str, Any] = {
        "model": model.model_id,
        "tasks": names or ("toy/rows",),
        "lengths": (192,),
        "samples": 3,
        "methods": ("full",),
        "max_new_tokens": 4,
        "sanity": True,
    }
    return Request(**{**values, **changes})


def test_every_sample_gets_the_four_columns(model: CateKVModel, tmp_path: Path) -> None:
    chosen = settings_for(request(model, "ruler/vt", "ruler/niah_single_1"), model)
    outcome = evaluate(model, chosen, tmp_path, progress=False)
    assert (outcome.failed, outcome.invalid) == (0, ())
    assert outcome.measured == 2 * 3 * 5
    found = RunDirectory(tmp_path).records().values()
    for label, score in ((sanity.ORACLE, 1.0), (sanity.EMPTY, 0.0)):
        assert {r.official for r in found if r.method == label} == {score}
    for label in (sanity.RANDOM, sanity.NO_CONTEXT):
        values = [r.official for r in found if r.method == label]
        assert len(values) == 6
        assert sum(value or 0.0 for value in values) / 6 < 0.1
    asked = [r for r in found if r.method == sanity.NO_CONTEXT]
    assert all(0 < r.prompt_tokens < 60 for r in asked)
    assert outcome.summary is not None
    assert set(sanity.LABELS) <= set(outcome.summary["methods"])
    assert evaluate(model, chosen, tmp_path, progress=False).measured == 0


def test_a_random_answer_is_another_samples_or_drawn_letters(
    model: CateKVModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, [toy_sample(i) for i in range(3)])
    (cell,) = build_cells(model, settings_for(request(model), model))
    unit = Unit(cell, "agnostic", (0, 1, 2))
    for position in range(3):
        answer = sanity.random_answer(unit, position, seed=1)
        assert answer in {"10", "11", "12"} - {str(position + 10)}
        assert answer == sanity.random_answer(unit, position, seed=1)
    register(monkeypatch, [toy_sample(0, outputs=("abcdefgh",))])
    (alone,) = build_cells(model, settings_for(request(model), model))
    drawn = sanity.random_answer(Unit(alone, "agnostic", (0,)), 0, seed=1)
    assert sorted(drawn) == list("abcdefgh")
    assert drawn != "abcdefgh"


def test_a_metric_that_fails_its_references_or_rewards_nothing_is_reported(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(prediction: str, sample: Any) -> dict[str, float]:
        value = 0.5 if prediction in ("", "10") else 0.0
        return {"official": value, "strict": value}

    register(monkeypatch, [toy_sample(0)], score=broken)
    words = [
        "evaluate", "--model", str(checkpoint), "--tasks", "toy/rows", "--lengths", "192",
        "--samples", "1", "--methods", "full", "--max-new-tokens", "2", "--device", "cpu",
        "--quiet", "--sanity", "--output", str(tmp_path / "run"),
    ]  # fmt: skip
    assert cli.main(words) == 1
    shown = capsys.readouterr()
    assert "[oracle] scores 50.00 instead of 100 on toy/rows at 192 tokens" in shown.err
    assert "[empty] scores 50.00 instead of 0 on toy/rows" in shown.err
    assert "[no context]" in shown.out


def test_a_file_without_a_boundary_cannot_lose_its_context(
    model: CateKVModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = toy_sample(0, question="", metadata={"query_aware_only": True})
    register(monkeypatch, [whole])
    chosen = settings_for(request(model, questions=("aware",)), model)
    outcome = evaluate(model, chosen, tmp_path, progress=False)
    assert (outcome.failed, outcome.skipped) == (0, 1)
    (left_out,) = (r for r in RunDirectory(tmp_path).records().values() if r.skipped)
    assert left_out.method == sanity.NO_CONTEXT


def test_the_oracle_answers_in_the_form_that_the_rule_reads() -> None:
    wanted = {
        "ruler/niah_multivalue": ("17, 23", ("17", "23"), {}),
        "longbench/qasper": ("yes", ("yes", "no"), {}),
        "infinitebench/code_debug": ("B.", ("name", "B"), {"label": ["name", "B"]}),
        "infinitebench/code_run": ("-3", ("-3",), {"label": -3}),
        "graphwalks/bfs": ("Final Answer: [a1, b2]", ("a1", "b2"), {"nodes": ["a1", "b2"]}),
        "graphwalks/parents": ("Final Answer: []", (), {"nodes": []}),
    }
    for name, (answer, outputs, scoring) in wanted.items():
        sample = toy_sample(0, task=name, outputs=outputs, scoring=scoring)
        assert sanity.oracle(sample) == answer
        assert tasks.score(answer, sample)["official"] == 1


def test_a_published_rule_that_cannot_be_fulfilled_is_seen() -> None:
    # names of several words are looked for among single words
    name = "infinitebench/longdialogue_qa_eng"
    sample = toy_sample(0, task=name, outputs=("THE BAKER",), scoring={"label": ["THE BAKER"]})
    assert tasks.score(sanity.oracle(sample), sample)["official"] == 0


def test_violations_count_samples_and_forgive_rounding() -> None:
    def record(method: str, index: int, official: float) -> Record:
        return Record("toy/rows", 0, index, method, "agnostic", "h", official=official)

    fine = [record(sanity.ORACLE, 0, 1 - 1e-6), record(sanity.EMPTY, 0, 0.0)]
    assert sanity.violations([*fine, record(sanity.RANDOM, 0, 0.7), record("full", 0, 0.1)]) == []
    (found,) = sanity.violations([*fine, record(sanity.ORACLE, 1, 0.5)])
    assert found == "[oracle] scores 75.00 instead of 100 on toy/rows (1 of 2 samples)"


@pytest.mark.parametrize("name", suites()["mini"].tasks)
def test_the_references_of_every_task_score_100_and_nothing_scores_0(
    name: str, model: CateKVModel
) -> None:
    options = {"source": "built-in"} if "source" in find(name).option_names() else {}
    for sample in tasks.build(name, model.tokenizer, 512, 2, **options):
        assert tasks.score(sanity.oracle(sample), sample)["official"] == pytest.approx(1, abs=1e-5)
        assert tasks.score("", sample)["official"] == 0


def test_a_model_without_a_tokenizer_is_refused_where_text_is_read(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path)
    for path in folder.glob("*token*"):
        path.unlink()
    assert open_model(Request(model=str(folder), device="cpu")).tokenizer is None
    with pytest.raises(UserError, match="has no tokenizer; tasks are text"):
        open_model(Request(model=str(folder), device="cpu"), for_text=True)
