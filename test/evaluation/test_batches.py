"""Batches, shared contexts, endings of answers: records are those of one sample at a time."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoint import save_tiny_checkpoint
from toy_tasks import register, toy_sample

from catekv.evaluation.columns.settings import RunSettings
from catekv.evaluation.records.records import Record, RunDirectory
from catekv.evaluation.report.rescoring import rescored
from catekv.evaluation.run.batches import units_of
from catekv.evaluation.run.cells import build_cells
from catekv.evaluation.run.distributed import Process
from catekv.evaluation.run.request import Request
from catekv.evaluation.run.runner import Outcome, evaluate
from catekv.evaluation.run.session import open_model, settings_for
from catekv.model import CateKVModel, DensePrompt
from catekv.prefill.capacity import TooLittleMemoryError

CATEKV = "catekv:init_tokens=8,recent_tokens=16,guard_tokens=8,window=16,budget=32"
#: one of each kind: everything, static heads, window scores with equal memory, allocation over all
#: layers, a store that reads a part, one that rolls while decoding
METHODS = (
    "full", CATEKV, "snapkv:window=16", "adakv:window=16", "quest:page=8,full_layers=0", "h2o",
)  # fmt: skip
LENGTHS = (90, 150, 120, 60, 121)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CateKVModel:
    folder = save_tiny_checkpoint(tmp_path_factory.mktemp("model"))
    return open_model(Request(model=str(folder), device="cpu"))


def settings(model: CateKVModel, **changes: Any) -> RunSettings:
    request = Request(
        model=model.model_id,
        tasks=("toy/rows",),
        lengths=(0,),
        samples=8,
        methods=METHODS,
        masks=("random:0",),
    )
    return settings_for(dataclasses.replace(request, **changes), model)


def run(model: CateKVModel, chosen: RunSettings, folder: Path, **options: Any) -> Outcome:
    return evaluate(model, chosen, folder, progress=False, **options)


def records_of(folder: Path) -> list[Record]:
    return list(RunDirectory(folder).records().values())


def answers(folder: Path) -> list[tuple[Any, ...]]:
    return [
        (*r.key, r.prediction, r.official, r.kept, r.new_tokens, r.full_bytes, r.budget)
        for r in records_of(folder)
    ]


@pytest.mark.parametrize(
    ("prefill", "question"),
    [
        ("shared", "agnostic"),
        ("separate", "aware"),
        pytest.param("shared", "aware", marks=pytest.mark.slow),
        pytest.param("separate", "agnostic", marks=pytest.mark.slow),
    ],
)
def test_batches_give_the_answers_and_sizes_of_single_samples(
    model: CateKVModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prefill: str,
    question: str,
) -> None:
    register(monkeypatch, [toy_sample(i, n) for i, n in enumerate(LENGTHS)])
    chosen = settings(model, prefill=prefill, questions=(question,))
    run(model, chosen, tmp_path / "single")
    run(model, dataclasses.replace(chosen, batch_size=3), tmp_path / "batch")
    assert answers(tmp_path / "single") == answers(tmp_path / "batch")
    single, batch = (records_of(tmp_path / name) for name in ("single", "batch"))
    for one, other in zip(single, batch, strict=True):
        assert not one.error
        assert other.kept_share == pytest.approx(one.kept_share)
        assert other.asked_share == one.asked_share
        assert (other.prompt_tokens, other.compressed_tokens) == (
            one.prompt_tokens,
            one.compressed_tokens,
        )
    plain = [r for r in batch if r.method in ("full", "catekv", "snapkv")]
    assert {r.batch for r in plain} == {2, 3}
    for one, other in zip(single, batch, strict=True):
        if other.batch > 1 and other.method in ("full", "catekv"):
            assert other.stored_bytes == pytest.approx(one.stored_bytes, rel=0.05)


def test_drawn_answers_are_those_of_single_samples_and_their_scores_the_mean(
    model: CateKVModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the references are frequent words, so that some of the drawn answers hold them
    short = LENGTHS[:3]
    register(monkeypatch, [toy_sample(i, n, outputs=("the",)) for i, n in enumerate(short)])
    chosen = settings(model, methods=("full", "snapkv:window=16"), answers=3, temperature=2.0)
    run(model, chosen, tmp_path / "single")
    run(model, dataclasses.replace(chosen, batch_size=3), tmp_path / "batch")
    single, batch = (records_of(tmp_path / name) for name in ("single", "batch"))
    assert [r.answers for r in single] == [r.answers for r in batch]
    assert all(len(set(r.answers)) > 1 and r.prediction == r.answers[0] for r in single)
    assert [rescored(r) for r in single] == single
    means = [
        sum(rescored(dataclasses.replace(r, answers=(text,))).official or 0 for text in r.answers)
        for r in single
    ]
    assert [3 * (r.official or 0) for r in single] == pytest.approx(means)
    assert all(r.at_limit is not None and r.new_tokens > 6 for r in single)


def test_methods_that_go_on_while_decoding_are_asked_one_by_one_where_budgets_differ(
    model: CateKVModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, [toy_sample(i, n) for i, n in enumerate(LENGTHS)])
    run(model, settings(model, batch_size=3), tmp_path)
    quest = [r for r in records_of(tmp_path) if r.method == "quest"]
    assert {r.batch for r in quest} == {1}
    assert {r.prefill for r in quest} == {"separate"}
    own = settings(model, methods=("full", "quest:page=8,full_layers=0,budget=40"), batch_size=3)
    run(model, own, tmp_path / "own")
    assert {r.batch for r in records_of(tmp_path / "own")} == {2, 3}


def test_batches_are_made_of_neighbours_in_length_whatever_the_order(
    model: CateKVModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, [toy_sample(i, n) for i, n in enumerate(LENGTHS)])
    (cell,) = build_cells(model, settings(model))
    alone = units_of(cell, "agnostic", 2, Process())
    assert [unit.positions for unit in alone] == [(3, 0), (2, 4), (1,)]
    shares = [units_of(cell, "agnostic", 2, Process(rank, 2)) for rank in range(2)]
    assert [shares[0][0], shares[1][0], shares[0][1]] == alone


@pytest.mark.slow
def test_a_batch_that_was_cut_by_a_kill_is_measured_as_a_whole_again(
    model: CateKVModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, [toy_sample(i, n) for i, n in enumerate(LENGTHS)])
    chosen = settings(model, methods=("full", CATEKV), batch_size=3)
    run(model, chosen, tmp_path)
    lines = (tmp_path / "samples.jsonl").read_bytes().splitlines(keepends=True)
    expected = answers(tmp_path)
    for kept in range(len(lines)):
        (tmp_path / "samples.jsonl").write_bytes(b"".join(lines[:kept]))
        outcome = run(model, chosen, tmp_path)
        assert outcome.measured == len(lines) - kept
        assert answers(tmp_path) == expected
        assert (tmp_path / "samples.jsonl").read_bytes().count(b"\n") == len(lines)
    sizes = {r.index: r.batch for r in records_of(tmp_path)}
    assert sizes == {0: 3, 1: 2, 2: 3, 3: 3, 4: 2}


def test_questions_of_one_context_share_its_prefill_and_compression(
    model: CateKVModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = toy_sample(0).context
    samples = [toy_sample(i, group="page", context=shared) for i in range(3)]
    samples += [toy_sample(3, group="page"), toy_sample(4)]
    register(monkeypatch, samples)
    read: list[int] = []
    observe = CateKVModel.observe

    def counting(self: CateKVModel, prompt: Any, *arguments: Any, **options: Any) -> DensePrompt:
        read.append(1)
        return observe(self, prompt, *arguments, **options)

    monkeypatch.setattr(CateKVModel, "observe", counting)
    run(model, settings(model), tmp_path / "grouped")
    assert len(read) == 3
    register(monkeypatch, [dataclasses.replace(sample, group="") for sample in samples])
    run(model, settings(model), tmp_path / "alone")
    assert len(read) == 3 + 5
    assert answers(tmp_path / "grouped") == answers(tmp_path / "alone")
    for record in records_of(tmp_path / "grouped"):
        together = record.index < 3
        assert record.context_questions == (3 if together else 1)
        assert record.question_seconds is not None
    times = {
        r.prefill_seconds
        for r in records_of(tmp_path / "grouped")
        if r.index < 3 and r.method == "full"
    }
    assert len(times) == 1


def test_a_question_inside_the_compressed_part_shares_nothing(
    model: CateKVModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = toy_sample(0).context
    register(monkeypatch, [toy_sample(i, group="page", context=shared) for i in range(2)])
    run(model, settings(model, methods=("full",), questions=("aware",)), tmp_path)
    assert {r.context_questions for r in records_of(tmp_path)} == {1}


def test_answers_end_at_stop_strings_and_not_before_their_least_length(
    model: CateKVModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, [toy_sample(0)])
    run(model, settings(model, methods=("full",)), tmp_path / "free")
    (free,) = records_of(tmp_path / "free")
    words = free.prediction.split()
    assert len(words) > 2
    register(monkeypatch, [toy_sample(0, stop=(words[1],)), toy_sample(1)])
    for batch in (1, 2):
        run(model, settings(model, methods=("full",), batch_size=batch), tmp_path / f"stop{batch}")
        record = records_of(tmp_path / f"stop{batch}")[0]
        assert record.prediction.split() == words[:1]
        assert record.batch == 1  # the other sample ends by other rules
    register(monkeypatch, [toy_sample(0, stop=(words[0],), min_new_tokens=1)])
    run(model, settings(model, methods=("full",)), tmp_path / "least")
    (least,) = records_of(tmp_path / "least")
    assert least.prediction.split()[:1] not in ([], words[:1])


def test_least_tokens_forbid_the_end_of_the_sequence(model: CateKVModel) -> None:
    ids = model.tokenizer.encode("the day and the man")
    context = model.prefill(ids[:-1], method="full")
    first = model.generate_ids(ids[-1:], context, 3, stop_token_ids=[]).tokens[0]
    ended = model.generate_ids(ids[-1:], context, 3, stop_token_ids=[first])
    assert ended.tokens == []
    longer = model.generate_ids(ids[-1:], context, 3, stop_token_ids=[first], min_new_tokens=2)
    assert len(longer.tokens) >= 2
    assert first not in longer.tokens[:2]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, TooLittleMemoryError])
def test_out_of_memory_halves_the_batch_and_later_ones_start_smaller(
    model: CateKVModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    register(monkeypatch, [toy_sample(i, n) for i, n in enumerate((*LENGTHS, 130, 140, 110))])
    chosen = settings(model, methods=("full", CATEKV), batch_size=4)
    run(model, chosen, tmp_path / "enough")
    observe = CateKVModel.observe
    tried: list[int] = []

    def small(self: CateKVModel, prompt: Any, *arguments: Any, **options: Any) -> DensePrompt:
        count = 1 if isinstance(prompt[0], int) else len(prompt)
        tried.append(count)
        if count > 2:
            raise error("no memory left")
        return observe(self, prompt, *arguments, **options)

    monkeypatch.setattr(CateKVModel, "observe", small)
    outcome = run(model, chosen, tmp_path / "little")
    assert (outcome.failed, outcome.measured) == (0, 16)
    assert tried == [4, 2, 2, 2, 2]
    assert answers(tmp_path / "enough") == answers(tmp_path / "little")
    assert {r.batch for r in records_of(tmp_path / "little")} == {2}


def test_a_single_sample_without_memory_is_tried_with_the_separate_prefill(
    model: CateKVModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, [toy_sample(i) for i in range(2)])

    def none(*arguments: Any, **options: Any) -> DensePrompt:
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(CateKVModel, "observe", none)
    outcome = run(model, settings(model, methods=("full", CATEKV), batch_size=2), tmp_path)
    assert (outcome.failed, outcome.measured) == (0, 4)
    assert {(r.prefill, r.batch) for r in records_of(tmp_path)} == {("separate", 1)}


def test_only_the_guilty_sample_of_a_batch_fails_and_only_its_method_leaves_the_batch(
    model: CateKVModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, [toy_sample(i, 100 + i) for i in range(4)])
    generate_ids = CateKVModel.generate_ids
    chosen = settings(model, methods=("full", CATEKV, "snapkv:window=16"), batch_size=4)

    def failing(self: CateKVModel, ids: Any, context: Any, *arguments: Any, **options: Any) -> Any:
        name = type(context.cache.settings.method).__name__
        question = model.tokenizer.encode(toy_sample(2).question, add_special_tokens=False)
        rows = [ids] if isinstance(ids[0], int) else ids
        if name == "CateKV" and any(row[: len(question)] == question for row in rows):
            raise RuntimeError("planted")
        return generate_ids(self, ids, context, *arguments, **options)

    monkeypatch.setattr(CateKVModel, "generate_ids", failing)
    outcome = run(model, chosen, tmp_path)
    assert (outcome.failed, outcome.measured) == (1, 12)
    (bad,) = (r for r in records_of(tmp_path) if r.error)
    assert (bad.method, bad.index) == ("catekv", 2)
    assert bad.error is not None
    assert (bad.error["phase"], bad.error["message"]) == ("generate", "planted")
    assert {r.batch for r in records_of(tmp_path) if r.method == "snapkv"} == {4}
    monkeypatch.undo()
    register(monkeypatch, [toy_sample(i, 100 + i) for i in range(4)])
    assert run(model, chosen, tmp_path).measured == 1
    run(model, chosen, tmp_path / "undisturbed")
    assert answers(tmp_path) == answers(tmp_path / "undisturbed")


def test_a_sample_that_cannot_be_built_fails_alone(
    model: CateKVModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [toy_sample(i) for i in range(3)]

    def broken(request: Any) -> Any:
        if request.first == 1:
            raise RuntimeError("planted")
        yield samples[request.first]

    register(monkeypatch, samples, natural=False, generate=broken)
    chosen = settings(model, methods=("full", CATEKV), lengths=(192,), samples=3, batch_size=3)
    outcome = run(model, chosen, tmp_path)
    assert (outcome.failed, outcome.measured) == (2, 6)
    assert {r.index for r in records_of(tmp_path) if r.error} == {1}


def test_a_run_in_which_nearly_everything_fails_gives_up_and_keeps_its_records(
    model: CateKVModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, [toy_sample(i) for i in range(40)])

    def broken(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("planted")

    monkeypatch.setattr(CateKVModel, "generate_ids", broken)
    chosen = settings(model, methods=("full",), samples=40)
    outcome = run(model, chosen, tmp_path / "half")
    assert outcome.gave_up
    assert outcome.failed == outcome.measured == len(records_of(tmp_path / "half")) == 20
    patient = run(model, chosen, tmp_path / "all", max_errors=1.0)
    assert (patient.failed, patient.gave_up) == (40, False)
