"""What a run refuses before it measures anything, what it leaves out and what it warns about."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import save_tiny_checkpoint
from toy_tasks import register, text, toy_sample

from catekv import tasks
from catekv.errors import UserError
from catekv.evaluation.columns.settings import RunSettings
from catekv.evaluation.records.records import RunDirectory
from catekv.evaluation.run.cells import build_cells
from catekv.evaluation.run.overlap import context_hash
from catekv.evaluation.run.request import Request
from catekv.evaluation.run.runner import evaluate
from catekv.evaluation.run.session import contexts_behind, open_model, settings_for
from catekv.model import CateKVModel
from catekv.tasks.core.prompt import encode
from catekv.tasks.core.sample import Sample


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CateKVModel:
    folder = save_tiny_checkpoint(tmp_path_factory.mktemp("model"), max_position_embeddings=512)
    return open_model(Request(model=str(folder), device="cpu"))


def settings(model: CateKVModel, *names: object, **changes: Any) -> RunSettings:
    request = Request(
        model=model.model_id,
        tasks=tuple(map(str, names)) or ("toy/rows",),
        lengths=(192,),
        samples=5,
        methods=("full",),
        max_new_tokens=4,
    )
    return settings_for(dataclasses.replace(request, **changes), model)


@pytest.fixture
def samples(model: CateKVModel) -> list[Sample]:
    return tasks.build("ruler/vt", model.tokenizer, 192, 2)


def test_a_torn_data_file_is_named_with_its_line(
    model: CateKVModel, samples: list[Sample], tmp_path: Path
) -> None:
    path = tmp_path / "vt.jsonl"
    tasks.write(path, samples)
    path.write_text(path.read_text()[:-40])
    with pytest.raises(UserError, match=r"vt\.jsonl, line 2: not a complete JSON object"):
        build_cells(model, settings(model, path))


def test_equal_indices_in_a_file_are_refused(
    model: CateKVModel, samples: list[Sample], tmp_path: Path
) -> None:
    path = tmp_path / "vt.jsonl"
    tasks.write(path, samples)
    path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n")
    with pytest.raises(UserError, match=r"samples 1 and 3 both have index 0; .* build it again"):
        build_cells(model, settings(model, path))


def test_a_file_of_two_tasks_is_refused(
    model: CateKVModel, samples: list[Sample], tmp_path: Path
) -> None:
    path = tmp_path / "both.jsonl"
    (other,) = tasks.build("ruler/niah_single_1", model.tokenizer, 192, 1, first=7)
    tasks.write(path, [*samples, other])
    with pytest.raises(UserError, match=r"mixes ruler/vt and ruler/niah_single_1"):
        build_cells(model, settings(model, path))


def test_samples_of_two_tokenizers_are_refused_and_of_another_one_warned_about(
    model: CateKVModel, samples: list[Sample], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def made_for(sample: Sample, name: str) -> Sample:
        changed = {**sample.metadata, "tokenizer": name, "tokenizer_hash": f"hash of {name}"}
        return dataclasses.replace(sample, metadata=changed)

    path = tmp_path / "vt.jsonl"
    tasks.write(path, [samples[0], made_for(samples[1], "other")])
    with pytest.raises(UserError, match="mixes samples built for 2 tokenizers; build it again"):
        build_cells(model, settings(model, path))
    tasks.write(path, [made_for(sample, "other") for sample in samples])
    outcome = evaluate(model, settings(model, path), tmp_path / "run", quiet=True)
    assert outcome.measured == 2
    assert "warning: " in (shown := capsys.readouterr().err)
    assert "was built for another tokenizer (other)" in shown
    manifest = RunDirectory(tmp_path / "run").read_manifest()
    assert manifest is not None
    assert "another tokenizer" in manifest["warnings"][0]


def test_a_fitted_sample_longer_than_the_window_is_refused(
    model: CateKVModel, tmp_path: Path
) -> None:
    path = tmp_path / "vt.jsonl"
    tasks.write(path, tasks.build("ruler/vt", model.tokenizer, 600, 1))
    with pytest.raises(UserError, match=r"needs \d+ tokens but the model's window is 512"):
        build_cells(model, settings(model, path))


def test_a_natural_row_longer_than_the_window_is_a_visible_skip(
    model: CateKVModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, [toy_sample(0), toy_sample(1, 700), toy_sample(2)])
    chosen = settings(model, lengths=(0,))
    outcome = evaluate(model, chosen, tmp_path, progress=False)
    assert (outcome.measured, outcome.failed, outcome.skipped) == (2, 0, 1)
    (left_out,) = (r for r in RunDirectory(tmp_path).records().values() if r.error)
    assert left_out.skipped
    assert left_out.error is not None
    assert left_out.error["message"].startswith("it needs 718 tokens and the model's window is 512")
    assert evaluate(model, chosen, tmp_path, progress=False).measured == 0
    assert (tmp_path / "samples.jsonl").read_text().count("\n") == 3


def test_a_row_cut_into_its_question_is_left_out_where_the_question_comes_later(
    model: CateKVModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = toy_sample(1, question="", metadata={"query_aware_only": True})
    register(monkeypatch, [toy_sample(0), whole, toy_sample(2)])
    chosen = settings(model, questions=("agnostic", "aware"))
    outcome = evaluate(model, chosen, tmp_path, progress=False)
    assert (outcome.measured, outcome.failed, outcome.skipped) == (5, 0, 1)
    (left_out,) = (r for r in RunDirectory(tmp_path).records().values() if r.error)
    assert (left_out.index, left_out.question, left_out.skipped) == (1, "agnostic", True)
    assert left_out.error is not None
    assert left_out.error["message"].endswith("give --question aware")


def test_a_changed_row_anywhere_is_not_mixed_in(
    model: CateKVModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, [toy_sample(0), toy_sample(1)])
    evaluate(model, settings(model), tmp_path, progress=False)
    register(monkeypatch, [toy_sample(0), toy_sample(1, outputs=("another answer",))])
    with pytest.raises(UserError, match="holds other samples of toy/rows"):
        evaluate(model, settings(model), tmp_path, progress=False)


def test_rows_that_end_early_make_a_smaller_cell(
    model: CateKVModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, [toy_sample(0), toy_sample(1)])
    (cell,) = build_cells(model, settings(model, samples=50))
    assert cell.count == 2
    register(monkeypatch, [])
    with pytest.raises(UserError, match="toy/rows holds no rows"):
        build_cells(model, settings(model))


@pytest.mark.parametrize("allowance", [2, 60])
@pytest.mark.parametrize("task", ["ruler/vt", "zeroscrolls/qasper"])
def test_prompt_and_asked_for_answer_together_keep_to_the_length(
    model: CateKVModel, task: str, allowance: int
) -> None:
    options = {"source": "built-in"} if task.startswith("zeroscrolls") else {}
    chosen = settings(
        model, task, lengths=(256,), samples=2, max_new_tokens=allowance, task_options=options
    )
    (cell,) = build_cells(model, chosen)
    for position in range(2):
        sample = cell.sample(position)
        prompt = len(encode(sample, model.tokenizer, chosen.chat_template))
        assert 0.9 * 256 <= prompt + allowance <= 256
        assert sample.max_new_tokens == allowance


def test_cut_rows_are_counted_in_a_warning(
    model: CateKVModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = [toy_sample(i, metadata={"cut_tokens": 40 * i}) for i in range(3)]
    register(monkeypatch, cut)
    (cell,) = build_cells(model, settings(model))
    (warning,) = cell.warnings
    assert warning.startswith("toy/rows: 2 of 3 samples were cut to 192 tokens, by up to 80")


def test_without_a_length_rows_are_limited_by_the_window_only(
    model: CateKVModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, [toy_sample(0)])
    assert settings(model, lengths=()).lengths == (512,)
    with pytest.raises(UserError, match="length 0 means whole rows, but ruler/vt is built"):
        build_cells(model, settings(model, "ruler/vt", lengths=(0,)))


def test_a_task_without_its_data_says_what_to_do(
    model: CateKVModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CATEKV_DATA", raising=False)
    chosen = settings(
        model, "longbench/qasper", task_options={"path": str(tmp_path), "source": "path"}
    )
    with pytest.raises(UserError, match="qasper") as caught:
        build_cells(model, chosen)
    assert "\n" not in str(caught.value)


def test_a_mask_made_from_the_test_file_is_refused(
    model: CateKVModel, samples: list[Sample], tmp_path: Path
) -> None:
    path = tmp_path / "vt.jsonl"
    tasks.write(path, samples)
    chosen = dataclasses.replace(
        settings(model, path), reference_contexts=frozenset({context_hash(samples[1])})
    )
    with pytest.raises(UserError, match=r"sample 1 of ruler/vt stands in the reference set and in"):
        evaluate(model, chosen, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_the_contexts_behind_a_mask_are_found_by_its_folder() -> None:
    folder = Path(__file__).resolve().parents[2] / "select_headmask" / "embedded" / "chosen"
    found = contexts_behind(f"chosen={folder}")
    assert found
    file = next(folder.glob("head_type_p*.csv"))
    assert contexts_behind(str(file)) == found
    assert contexts_behind("random:0") == contexts_behind("reversed") == frozenset()


def test_groups_need_the_same_context_too(
    model: CateKVModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(
        monkeypatch,
        [
            toy_sample(0, group="page", context=text(50)),
            toy_sample(1, group="page", context=text(50)),
            toy_sample(2, group="page", context=text(50, 1)),
            toy_sample(3),
        ],
    )
    (cell,) = build_cells(model, settings(model))
    assert cell.groups[0] == cell.groups[1] != cell.groups[2]
    assert cell.groups[3] == ""


def test_the_manifest_says_where_rows_come_from(
    model: CateKVModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, [toy_sample(0, metadata={"data": "built-in"})])
    evaluate(model, settings(model, batch_size=2), tmp_path, progress=False)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["data"] == {"toy/rows": "built-in"}
    assert (manifest["batch_size"], manifest["suite"]) == (2, "")
