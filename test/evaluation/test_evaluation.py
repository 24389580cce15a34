"""Runs from end to end on a tiny random model: records, resuming, kills, ranks, failures."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoint import save_tiny_checkpoint

from catekv.commands import cli
from catekv.errors import UserError
from catekv.evaluation.columns.settings import RunSettings
from catekv.evaluation.records.records import Record, RunDirectory
from catekv.evaluation.report import report
from catekv.evaluation.run.request import Request
from catekv.evaluation.run.runner import Outcome, evaluate
from catekv.evaluation.run.session import open_model, settings_for
from catekv.model import CateKVModel, DensePrompt

REPOSITORY = Path(__file__).resolve().parents[2]
CATEKV = "catekv:init_tokens=8,recent_tokens=16,guard_tokens=8,window=16,budget=64"
REQUEST = Request(
    tasks=("ruler/vt", "ruler/niah_single_1"),
    lengths=(192,),
    samples=2,
    methods=("full", CATEKV, "snapkv:window=16", "streaming_llm:sinks=4"),
    masks=("random:0",),
    max_new_tokens=4,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> CateKVModel:
    return open_model(dataclasses.replace(REQUEST, model=str(checkpoint), device="cpu"))


@pytest.fixture
def settings(model: CateKVModel, checkpoint: Path) -> RunSettings:
    return settings_for(dataclasses.replace(REQUEST, model=str(checkpoint)), model)


def run(model: CateKVModel, settings: RunSettings, folder: Path, **options: Any) -> Outcome:
    return evaluate(model, settings, folder, progress=False, **options)


def records_of(folder: Path) -> list[Record]:
    return list(RunDirectory(folder).records().values())


def answers(folder: Path) -> list[tuple[Any, ...]]:
    return [(*r.key, r.prediction, r.official, r.kept) for r in records_of(folder)]


def test_every_sample_gets_a_record_for_every_method(
    model: CateKVModel, settings: RunSettings, tmp_path: Path
) -> None:
    outcome = run(model, settings, tmp_path)
    found = records_of(tmp_path)
    assert len(found) == outcome.measured == 2 * 2 * 4
    assert outcome.failed == 0
    by_method = {
        label: [r for r in found if r.method == label]
        for label in ("full", "catekv", "snapkv", "streaming_llm")
    }
    for record in by_method["full"]:
        assert record.kept_share == 1.0
        assert record.target_length == 192
        assert 0.97 * 192 <= record.prompt_tokens + 30 <= 192 + 30
        assert record.new_tokens == record.decode_steps + 1 == 4
    for label in ("catekv", "snapkv", "streaming_llm"):
        for record, full in zip(by_method[label], by_method["full"], strict=True):
            assert 0.2 < (record.kept_share or 0) < 0.9
            assert (record.stored_bytes or 0) < (full.stored_bytes or 0)


def test_equal_memory_baselines_keep_what_catekv_keeps(
    model: CateKVModel, settings: RunSettings, tmp_path: Path
) -> None:
    run(model, settings, tmp_path)
    kept = {(r.task, r.index, r.method): r for r in records_of(tmp_path)}
    for (task, index, method), record in kept.items():
        if method in ("snapkv", "streaming_llm"):
            reference = kept[task, index, "catekv"].kept_tokens
            assert record.kept_tokens == pytest.approx(reference, abs=0.5)
            assert record.budget is not None


def test_shared_and_separate_prefill_give_the_same_answers(
    model: CateKVModel, settings: RunSettings, tmp_path: Path
) -> None:
    for mode in ("shared", "separate"):
        changed = dataclasses.replace(settings, prefill=mode, questions=("agnostic", "aware"))
        run(model, changed, tmp_path / mode)
        assert {r.prefill for r in records_of(tmp_path / mode)} == {mode}
    assert answers(tmp_path / "shared") == answers(tmp_path / "separate")


def test_joint_decoding_gives_the_same_answers_without_times(
    model: CateKVModel, settings: RunSettings, tmp_path: Path
) -> None:
    joint = dataclasses.replace(settings, joint_decode=True)
    run(model, joint, tmp_path / "joint")
    run(model, settings, tmp_path / "single")
    assert answers(tmp_path / "joint") == answers(tmp_path / "single")
    assert all(r.decode_seconds is None for r in records_of(tmp_path / "joint"))
    assert all(r.decode_seconds for r in records_of(tmp_path / "single"))
    sizes = [[(r.stored_bytes, r.kept_share) for r in records_of(tmp_path / name)]
             for name in ("joint", "single")]  # fmt: skip
    assert sizes[0] == sizes[1]


def test_a_joint_batch_leaves_out_what_goes_on_while_decoding(
    model: CateKVModel, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = (*REQUEST.methods, "h2o", "quest:page=4", "moved=snapkv:window=16,store=offload")
    request = dataclasses.replace(REQUEST, methods=methods, model=str(checkpoint), samples=1)
    settings = settings_for(request, model)
    run(model, settings, tmp_path / "single")
    sizes = []
    prefills = []
    generate_ids, observe = CateKVModel.generate_ids, CateKVModel.observe

    def counting(
        self: CateKVModel, questions: Any, context: Any, *arguments: Any, **options: Any
    ) -> Any:
        sizes.append(context.input_ids.shape[0])
        return generate_ids(self, questions, context, *arguments, **options)

    def counted(self: CateKVModel, *arguments: Any, **options: Any) -> Any:
        prefills.append(1)
        return observe(self, *arguments, **options)

    monkeypatch.setattr(CateKVModel, "generate_ids", counting)
    monkeypatch.setattr(CateKVModel, "observe", counted)
    run(model, dataclasses.replace(settings, joint_decode=True), tmp_path / "joint")
    assert sizes == 2 * [4, 1, 1, 1]
    assert len(prefills) == 2
    assert answers(tmp_path / "joint") == answers(tmp_path / "single")
    timed = {r.method for r in records_of(tmp_path / "joint") if r.decode_seconds}
    assert timed == {"h2o", "quest", "moved"}
    for folder, said in (("joint", True), ("single", False)):
        page = (tmp_path / folder / "report.html").read_text()
        assert "time of a decode step" in page
        assert ("Not timed: full, catekv, snapkv, streaming_llm." in page) == said
    # what is decoded alone needs no batch when it alone is missing
    lines = (tmp_path / "joint" / "samples.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "joint" / "samples.jsonl").write_bytes(b"".join(lines[:-1]))
    sizes.clear()
    run(model, dataclasses.replace(settings, joint_decode=True), tmp_path / "joint")
    assert sizes == [1]


def test_an_interrupted_joint_batch_is_decoded_as_a_whole_again(
    model: CateKVModel, settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joint = dataclasses.replace(settings, joint_decode=True, samples=1)
    run(model, joint, tmp_path)
    lines = (tmp_path / "samples.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "samples.jsonl").write_bytes(b"".join(lines[:2]))
    sizes = []
    generate_ids = CateKVModel.generate_ids

    def counting(self: CateKVModel, questions: Any, *arguments: Any, **options: Any) -> Any:
        sizes.append(len(questions))
        return generate_ids(self, questions, *arguments, **options)

    monkeypatch.setattr(CateKVModel, "generate_ids", counting)
    assert run(model, joint, tmp_path).measured == 6
    assert sizes == [4, 4]


def test_a_failing_joint_decode_is_tried_method_by_method(
    model: CateKVModel, settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate_ids = CateKVModel.generate_ids

    def no_batches(
        self: CateKVModel, questions: Any, context: Any, *arguments: Any, **options: Any
    ) -> Any:
        if context.input_ids.shape[0] > 1:
            raise RuntimeError("planted")
        return generate_ids(self, questions, context, *arguments, **options)

    monkeypatch.setattr(CateKVModel, "generate_ids", no_batches)
    joint = dataclasses.replace(settings, joint_decode=True, samples=1)
    outcome = run(model, joint, tmp_path)
    assert (outcome.failed, outcome.measured) == (0, 8)


def test_the_question_is_inside_or_outside_the_compressed_part(
    model: CateKVModel, settings: RunSettings, tmp_path: Path
) -> None:
    run(model, dataclasses.replace(settings, questions=("agnostic", "aware")), tmp_path)
    for record in records_of(tmp_path):
        rest = record.prompt_tokens - record.compressed_tokens
        assert rest == 1 if record.question == "aware" else rest > 1
    full = [r for r in records_of(tmp_path) if r.method == "full"]
    by_mode = {
        mode: [r.prediction for r in full if r.question == mode] for mode in ("agnostic", "aware")
    }
    assert by_mode["agnostic"] == by_mode["aware"]


def test_a_second_run_measures_nothing_and_gives_the_same_summary(
    model: CateKVModel, settings: RunSettings, tmp_path: Path
) -> None:
    first = run(model, settings, tmp_path)
    lines = (tmp_path / "samples.jsonl").read_bytes()
    second = run(model, settings, tmp_path)
    assert second.measured == 0
    assert (tmp_path / "samples.jsonl").read_bytes() == lines
    assert second.summary == first.summary


def test_a_folder_grows_by_samples_methods_and_tasks(
    model: CateKVModel, settings: RunSettings, tmp_path: Path
) -> None:
    small = dataclasses.replace(settings, samples=1, methods=settings.methods[:1])
    assert run(model, small, tmp_path).measured == 2
    assert run(model, settings, tmp_path).measured == 2 * 2 * 4 - 2
    run(model, settings, tmp_path / "at once")
    assert answers(tmp_path) == answers(tmp_path / "at once")


def test_another_seed_or_other_options_are_refused(
    model: CateKVModel, settings: RunSettings, tmp_path: Path
) -> None:
    small = dataclasses.replace(settings, samples=1)
    run(model, small, tmp_path)
    before = answers(tmp_path)
    with pytest.raises(UserError, match="different: seed"):
        run(model, dataclasses.replace(small, seed=43), tmp_path)
    catekv = settings.methods[1]
    other = dataclasses.replace(catekv, options={**catekv.options, "budget": 72})
    with pytest.raises(UserError, match="method 'catekv' with other options"):
        run(model, small.with_methods((other,)), tmp_path)
    assert answers(tmp_path) == before
    run(model, dataclasses.replace(small, seed=43), tmp_path, overwrite=True)
    assert len(records_of(tmp_path)) == len(before)


def test_samples_of_another_version_are_not_mixed_in(
    model: CateKVModel, settings: RunSettings, tmp_path: Path
) -> None:
    small = dataclasses.replace(settings, samples=1)
    run(model, small, tmp_path)
    directory = RunDirectory(tmp_path)
    changed = [dataclasses.replace(r, sample_hash="other") for r in records_of(tmp_path)]
    directory.replace_records(changed)
    with pytest.raises(UserError, match="holds other samples"):
        run(model, small, tmp_path)


def test_a_failing_sample_is_a_record_and_the_run_goes_on(
    model: CateKVModel, settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate_ids = CateKVModel.generate_ids
    calls = iter(range(100))

    def failing(self: CateKVModel, *arguments: Any, **options: Any) -> Any:
        if next(calls) == 1:
            raise RuntimeError("planted")
        return generate_ids(self, *arguments, **options)

    monkeypatch.setattr(CateKVModel, "generate_ids", failing)
    outcome = run(model, settings, tmp_path)
    assert (outcome.failed, outcome.measured) == (1, 16)
    (bad,) = (r for r in records_of(tmp_path) if r.error)
    assert bad.method == "catekv"
    assert bad.error is not None
    assert (bad.error["type"], bad.error["message"]) == ("RuntimeError", "planted")
    assert bad.error["phase"] == "generate"
    assert "failing" in bad.error["traceback"]
    assert outcome.summary is not None
    assert sum(row["errors"] for row in outcome.summary["cells"]) == 1
    monkeypatch.undo()
    again = run(model, settings, tmp_path)
    assert (again.failed, again.measured) == (0, 1)
    run(model, settings, tmp_path / "undisturbed")
    assert answers(tmp_path) == answers(tmp_path / "undisturbed")


def test_out_of_memory_is_tried_again_with_the_least_memory(
    model: CateKVModel, settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compress = DensePrompt.compress
    calls = iter(range(1000))

    def full_memory(self: DensePrompt, *arguments: Any) -> Any:
        if next(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compress(self, *arguments)

    monkeypatch.setattr(DensePrompt, "compress", full_memory)
    outcome = run(model, settings, tmp_path)
    assert (outcome.failed, outcome.measured) == (0, 16)
    assert sorted(r.prefill for r in records_of(tmp_path)).count("separate") == 2
    run(model, settings, tmp_path / "undisturbed")
    assert answers(tmp_path) == answers(tmp_path / "undisturbed")


def test_lasting_lack_of_memory_is_an_error_record(
    model: CateKVModel, settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_memory(*arguments: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(CateKVModel, "generate_ids", full_memory)
    outcome = run(model, dataclasses.replace(settings, samples=1), tmp_path)
    assert outcome.failed == outcome.measured == 8


def test_a_full_disk_stops_the_run(
    model: CateKVModel, settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match="No space left"):
        run(model, settings, tmp_path)


def test_a_prompt_longer_than_the_window_is_refused(
    model: CateKVModel, settings: RunSettings, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="length 2048 exceeds the model's window of 1024"):
        run(model, dataclasses.replace(settings, lengths=(192, 2048)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_published_settings_are_one_flag(model: CateKVModel, checkpoint: Path) -> None:
    request = Request(model=str(checkpoint), paper=True, masks=("random:0",))
    paper = settings_for(request, model)
    assert (len(paper.tasks), paper.lengths, paper.samples) == (12, (131072,), 96)
    assert "ruler/cwe" not in paper.tasks
    assert paper.questions == ("aware",)
    catekv = paper.methods[1].create().to_dict()
    assert (catekv["ratio"], catekv["retention"], catekv["budget"]) == (0.4, 1.0, 2048)
    assert (catekv["window"], catekv["chunk_size"]) == (64, 8)
    assert (catekv["init_tokens"], catekv["recent_tokens"]) == (64, 256)
    changed = settings_for(dataclasses.replace(request, ratio=0.5, samples=3), model)
    assert (changed.samples, changed.methods[1].create().to_dict()["ratio"]) == (3, 0.5)


def test_files_are_tasks_too(model: CateKVModel, settings: RunSettings, tmp_path: Path) -> None:
    from catekv import tasks

    path = tmp_path / "vt" / "validation.jsonl"
    samples = tasks.build("ruler/vt", model.tokenizer, 192, 2, max_answer_tokens=4)
    tasks.write(path, samples)
    run(model, dataclasses.replace(settings, tasks=(str(path),)), tmp_path / "file")
    run(model, dataclasses.replace(settings, tasks=("ruler/vt",)), tmp_path / "built")
    from_file, built = answers(tmp_path / "file"), answers(tmp_path / "built")
    assert [row[2:] for row in from_file] == [row[2:] for row in built]
    assert {row[:2] for row in from_file} == {("ruler/vt", 0)}


def test_the_manifest_says_how_to_repeat_the_run(
    model: CateKVModel, settings: RunSettings, tmp_path: Path
) -> None:
    run(model, dataclasses.replace(settings, samples=1), tmp_path, command="catekv evaluate ...")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["starts"][0]["command"] == "catekv evaluate ..."
    assert manifest["methods"]["catekv"]["options"]["budget"] == 64
    assert manifest["methods"]["catekv"]["options"]["head_mask"]["adaptive"]
    assert manifest["configuration"]["seed"] == 42
    assert set(manifest["versions"]) >= {"catekv", "python", "torch", "transformers"}
    assert manifest["device"]["kind"] == "cpu"


def command(checkpoint: Path, output: Path) -> list[str]:
    return [
        "evaluate", "--model", str(checkpoint), "--tasks", *REQUEST.tasks, "--lengths", "192",
        "--samples", "4", "--methods", *REQUEST.methods, "--mask", "random:0",
        "--max-new-tokens", "4", "--device", "cpu", "--quiet", "--output", str(output),
    ]  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


@pytest.fixture(scope="module")
def undisturbed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert cli.main(command(checkpoint, folder)) == 0
    return folder


def same_summary(folder: Path, other: Path) -> bool:
    def timeless(path: Path) -> dict[str, Any]:
        return report.without_times(json.loads((path / "summary.json").read_text()))

    return timeless(folder) == timeless(other)


@pytest.mark.slow
def test_sigkill_and_a_restart_give_the_summary_of_an_undisturbed_run(
    checkpoint: Path, undisturbed: Path, tmp_path: Path
) -> None:
    words = [sys.executable, "-m", "catekv", *command(checkpoint, tmp_path / "run")]
    samples = tmp_path / "run" / "samples.jsonl"
    process = subprocess.Popen(words, env=environment(), stdout=subprocess.DEVNULL)
    while process.poll() is None:
        if samples.exists() and samples.read_bytes().count(b"\n") >= 11:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "run" / "summary.json").exists()
    subprocess.run(words, check=True, env=environment(), stdout=subprocess.DEVNULL)
    assert same_summary(tmp_path / "run", undisturbed)
    assert answers(tmp_path / "run") == answers(undisturbed)


def torchrun(checkpoint: Path, output: Path) -> list[str]:
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "-m", "catekv", *command(checkpoint, output),
    ]  # fmt: skip


@pytest.mark.slow
def test_two_ranks_give_the_summary_of_one_process(
    checkpoint: Path, undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    done = subprocess.run(
        torchrun(checkpoint, folder), env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("score x 100") == 1
    assert same_summary(folder, undisturbed)
    assert [file.name for file in folder.glob("samples*")] == ["samples.jsonl"]


@pytest.mark.slow
def test_failed_samples_of_one_rank_do_not_end_the_others(checkpoint: Path, tmp_path: Path) -> None:
    words = torchrun(checkpoint, tmp_path / "run")
    # RocketKV always keeps its window, which is more than CateKV keeps here
    edges = "budget=8,init_tokens=0,recent_tokens=0,guard_tokens=0"
    words += ["--ratio", "0.05", "--methods", "full", f"catekv:{edges}", "refuses=rocketkv"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True)
    assert done.returncode == 1
    assert "SIGTERM" not in done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    failed = {row["method"]: row["errors"] for row in summary["averages"]}
    assert failed["full"] == 0
    assert failed["refuses"] > 0


@pytest.mark.slow
def test_all_ranks_stop_when_the_folder_holds_another_configuration(
    checkpoint: Path, undisturbed: Path
) -> None:
    words = [*torchrun(checkpoint, undisturbed), "--seed", "7"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.count("different: seed") == 2


def test_files_that_ranks_left_behind_are_merged_by_fewer(
    checkpoint: Path, undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "manifest.json").write_bytes((undisturbed / "manifest.json").read_bytes())
    lines = (undisturbed / "samples.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "samples.rank0.jsonl").write_bytes(b"".join(lines[0:16:2]))
    (folder / "samples.rank1.jsonl").write_bytes(b"".join(lines[1:16:2]) + lines[16][:50])
    assert cli.main(command(checkpoint, folder)) == 0
    assert same_summary(folder, undisturbed)
    assert [file.name for file in folder.glob("samples*")] == ["samples.jsonl"]


def test_methods_that_have_nothing_to_compress_are_named_before_and_marked_after(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "--model", str(checkpoint), "--tasks", "ruler/vt", "--lengths", "160"]
    words += [
        "--samples",
        "1",
        "--max-new-tokens",
        "2",
        "--methods",
        "full",
        "a=snapkv:budget=4096",
    ]
    words += ["b=snapkv:budget=80", "--output", str(tmp_path), "--quiet"]
    assert cli.main(words) == 0
    said = capsys.readouterr()
    assert "warning: nothing to compress: a keep the whole of 160 tokens" in said.err
    assert "a (nothing compressed)" in said.out
    assert "b (nothing" not in said.out
    assert "Nothing compressed: a kept the whole of these prompts" in said.out
