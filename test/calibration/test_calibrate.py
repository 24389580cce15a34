"""The whole sweep on a tiny random model: references, masks, scores, report, resume."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoint import save_tiny_checkpoint

from catekv import calibration, tasks
from catekv.calibration import CVConfig, first_sample
from catekv.calibration.head_masks import answers, sweep
from catekv.calibration.head_masks.ablation import head_losses
from catekv.calibration.head_masks.answers import Answer
from catekv.calibration.head_masks.contrast import RANDOM, REVERSED, contrasts, sentence
from catekv.calibration.head_masks.reference import (
    HELD_OUT_STREAM,
    REFERENCE_STREAM,
    ReferencePass,
    build_samples,
    observe_prompt,
)
from catekv.calibration.head_masks.report import write as write_report
from catekv.calibration.head_masks.result import K_GRID, Candidate, SweepSettings
from catekv.commands import calibrate
from catekv.commands.cli import Parser, main
from catekv.commands.schema import add_options
from catekv.errors import UserError
from catekv.evaluation import figures
from catekv.evaluation.figure_files import fit_titles
from catekv.evaluation.run.overlap import context_hash, reference_contexts, refuse_overlap
from catekv.methods import create
from catekv.methods.head_mask import HeadMask, load_statistics
from catekv.methods.head_votes import STANDARD_RATIOS
from catekv.model import CateKVModel
from catekv.tasks.core.prompt import encode

GEOMETRY: dict[str, Any] = {
    "window": 8,
    "init_tokens": 4,
    "recent_tokens": 8,
    "chunk_size": 4,
    "guard_tokens": 8,
}
OPTIONS: dict[str, Any] = {"budget": 24, **GEOMETRY}
LENGTH = 160


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> CateKVModel:
    return CateKVModel.from_pretrained(checkpoint, method="full")


def settings(**changes: Any) -> SweepSettings:
    base: dict[str, Any] = {
        "references": ("ruler/vt", "ruler/niah_multikey_2"),
        "length": LENGTH,
        "samples": 3,
        "ks": (0.9, 0.98),
        "alphas": (1.0, 0.8),
        "ratio": 0.5,
        "cv": CVConfig(**GEOMETRY),
        "method_options": OPTIONS,
        "held_out_tasks": ("ruler/vt", "ruler/niah_multikey_1"),
        "held_out_samples": 1,
        "max_new_tokens": 2,
    }
    return SweepSettings(**{**base, **changes})


def test_sweep_writes_masks_statistics_and_report(model: CateKVModel, tmp_path: Path) -> None:
    result = sweep.sweep(model, settings(oracle=True), tmp_path, model_name="tiny", progress=False)
    folders = sweep.write_masks(result, tmp_path)
    assert [folder.name for folder in folders] == ["chosen", "vt", "niah_multikey_2", "oracle"]
    assert len(result.candidates) == 8
    for ratio in STANDARD_RATIOS:
        mask = HeadMask.load(tmp_path / "chosen", ratio)
        mask.validate(model.config)
        assert mask == calibration.vote(result.chosen.cvs, ratio)
        assert HeadMask.load(tmp_path / "oracle", ratio).layers == 2
    cvs, recipe = load_statistics(tmp_path / "vt" / "statistics.npz")
    assert cvs.shape == (3, 2, 2)
    assert recipe["recipe"]["reference"] == "ruler/vt"
    assert len(recipe["reference_contexts"]) == 3
    contexts = reference_contexts(tmp_path / "vt")
    refuse_overlap(contexts, tasks.build("ruler/vt", model.tokenizer, LENGTH, 3))
    used = build_samples("ruler/vt", model.tokenizer, LENGTH, 3, 42, REFERENCE_STREAM)
    with pytest.raises(UserError, match="disjoint"):
        refuse_overlap(contexts, used)
    meta = json.loads((tmp_path / "chosen" / "meta.json").read_text())
    assert meta["ratio"] == 0.5
    assert meta["recipe"]["k"] == result.chosen.config.k
    write_report(result, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["candidates"]) == 8
    assert sum(row["chosen"] for row in report["candidates"]) == 1
    assert {"full", "random-0", "chosen, reversed", "oracle"} <= set(report["controls"])
    with (tmp_path / "candidates.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 8
    assert "## All candidates" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "heads.png").read_bytes()[:4] == b"\x89PNG"


def test_one_pass_serves_all_pairs_and_is_taken_up_again(
    model: CateKVModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = settings().configs()
    reference = ReferencePass(tmp_path, "ruler/vt", configs, {"model": "tiny"})
    samples = build_samples("ruler/vt", model.tokenizer, LENGTH, 3, 1, REFERENCE_STREAM)
    prefills: list[int] = []
    original = model.prefill
    monkeypatch.setattr(
        model, "prefill", lambda ids, **kw: (prefills.append(len(ids)), original(ids, **kw))[1]
    )
    first = reference.run(model, samples[:2])
    assert len(prefills) == 2
    assert first.shape == (4, 2, 2, 2)
    files = sorted(tmp_path.glob("vt_fraction*/*.csv"))
    assert len(files) == 8
    assert {path.parent.name for path in files} == {
        f"vt_fraction{k}_top{alpha}_lastq8" for k in (0.9, 0.98) for alpha in (1.0, 0.8)
    }
    assert all(len(path.stem) == 10 for path in files)
    files[0].unlink()
    again = reference.run(model, samples)
    assert len(prefills) == 4
    assert torch.equal(again[:, :2], first)
    with pytest.raises(UserError, match=r"another configuration, different: model"):
        ReferencePass(tmp_path, "ruler/vt", configs, {"model": "other"}).prepare()


def test_observation_of_a_prompt_equals_that_of_its_dense_layers(model: CateKVModel) -> None:
    (sample,) = build_samples("ruler/vt", model.tokenizer, LENGTH, 1, 2, REFERENCE_STREAM)
    ids = encode(sample, model.tokenizer).ids
    configs = settings().configs()
    found = observe_prompt(model, ids, configs, chunk_size=50)
    dense = model.observe(ids, window=8)
    for layer in range(2):
        seen = dense.observed(layer)
        for number, config in enumerate(configs):
            expected = calibration.observe(seen.queries, seen.keys, config).cv[0]
            torch.testing.assert_close(found[number, layer], expected)


def test_streams_are_disjoint_and_overlap_is_refused(model: CateKVModel) -> None:
    streams = (REFERENCE_STREAM, HELD_OUT_STREAM, "test")
    built = [build_samples("ruler/vt", model.tokenizer, LENGTH, 6, 42, s) for s in streams]
    assert len({context_hash(sample) for samples in built for sample in samples}) == 18
    hashes = [context_hash(sample) for sample in built[0]]
    refuse_overlap(hashes, built[2])
    with pytest.raises(UserError, match="stands in the reference set and in the test set"):
        refuse_overlap(hashes, [*built[2], built[0][3]])


def test_a_reference_file_with_test_samples_is_refused(model: CateKVModel, tmp_path: Path) -> None:
    samples = tasks.build("ruler/vt", model.tokenizer, LENGTH, 3)
    path = tmp_path / "validation.jsonl"
    tasks.write(path, samples)
    with pytest.raises(UserError, match="disjoint"):
        sweep.sweep(
            model,
            settings(references=(str(path),)),
            tmp_path / "out",
            test_samples=tasks.read(path),
            progress=False,
        )


def test_checked_answers_equal_generated_ones(model: CateKVModel) -> None:
    samples = [
        dataclasses.replace(sample, max_new_tokens=3)
        for sample in build_samples("ruler/vt", model.tokenizer, LENGTH, 2, 3, HELD_OUT_STREAM)
    ]
    methods = {
        f"random-{seed}": create("catekv", head_mask=HeadMask.random((2, 2), 0.5, seed), **OPTIONS)
        for seed in range(2)
    }
    methods["all"] = create("catekv", head_mask=HeadMask(torch.ones(2, 2)), **OPTIONS)
    for sample in samples:
        prompt = encode(sample, model.tokenizer)
        dense = model.observe(prompt.context_ids, window=8)
        full = dense.compress(create("full"))
        allowance = sample.max_new_tokens
        answer = model.generate_ids(prompt.question_ids, full, allowance).tokens
        for method in methods.values():
            context = dense.compress(method)
            own = model.generate_ids(prompt.question_ids, context, allowance).tokens
            same, log_probability = answers.check_answer(
                model, context, prompt.question_ids, answer, sample
            )
            assert same == (own == answer)
            assert log_probability <= 0
    found = answers.score_methods(model, samples, methods, ("agnostic", "aware"))
    assert len(found) == 2 * 2 * 4
    full_values = [a.log_probability for a in found if a.label == "full"]
    all_values = [a.log_probability for a in found if a.label == "all"]
    assert all_values == pytest.approx(full_values, abs=1e-4)


def test_best_candidate_breaks_ties_as_stated() -> None:
    def candidate(accuracy: float, log_probability: float) -> Candidate:
        mask = HeadMask.random((2, 2), 0.5)
        cvs = torch.ones(1, 2, 2)
        return Candidate("vt", CVConfig(), cvs, mask, "", accuracy, log_probability)

    found = [candidate(0.5, -9.0), candidate(0.7, -3.0), candidate(0.7, -2.0), candidate(0.7, -2.0)]
    assert sweep.best(found) is found[2]
    assert sweep.best(found[:2]) is found[1]


def test_ablation_finds_the_heads_that_matter(model: CateKVModel) -> None:
    (sample,) = build_samples("ruler/vt", model.tokenizer, LENGTH, 1, 4, HELD_OUT_STREAM)
    samples = [dataclasses.replace(sample, max_new_tokens=3)]
    accuracy, log_probability = head_losses(model, samples, OPTIONS)
    assert accuracy.shape == log_probability.shape == (2, 2)
    prompt = encode(samples[0], model.tokenizer)
    dense = model.observe(prompt.context_ids, window=8)
    full = dense.compress(create("full"))
    answer = model.generate_ids(prompt.question_ids, full, samples[0].max_new_tokens).tokens
    one = torch.ones(2, 2, dtype=torch.bool)
    one[1, 0] = False
    alone = dense.compress(create("catekv", head_mask=HeadMask(one), **OPTIONS))
    _, before = answers.check_answer(model, full, prompt.question_ids, answer, samples[0])
    _, after = answers.check_answer(model, alone, prompt.question_ids, answer, samples[0])
    assert log_probability[1, 0].item() == pytest.approx(before - after, abs=1e-5)
    # one more head compressed never keeps everything, so the probabilities differ
    assert int((log_probability != 0).sum()) > 0


def command(checkpoint: Path, output: Path, *more: str) -> int:
    parser = Parser()
    add_options(parser, calibrate.OPTIONS)
    words = ["--model", str(checkpoint), "--output", str(output), "--length", str(LENGTH)]
    words += ["--samples", "2", "--k", "0.9", "--alpha", "1.0", "--held-out-samples", "1"]
    words += ["--held-out-tasks", "ruler/vt", "--references", "ruler/vt", "--budget", "24"]
    words += ["--window", "8", "--init-tokens", "4", "--recent-tokens", "8", "--no-picture"]
    words += ["--max-new-tokens", "2", *more]
    return calibrate.run(parser.parse_args(words))


def test_command_line(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(checkpoint, tmp_path) == 0
    printed = capsys.readouterr().out
    assert "best of ruler/vt" in printed
    assert str(tmp_path / "chosen") in printed
    # one sample tells nothing, and the tiny model's answers are all wrong
    assert "The chosen mask is not distinguishable from random heads (+0.0 points, -" in printed
    assert "and its own reverse" in printed
    assert HeadMask.load(tmp_path / "chosen", 0.4).adaptive.shape == (2, 2)
    assert not (tmp_path / "heads.png").exists()


def test_subcommand_knows_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["calibrate", "--help"])
    assert stopped.value.code == 0
    assert "--held-out-samples" in capsys.readouterr().out
    assert main(["calibrate", "--model", "/nowhere/x", "--k", "0.9"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--recent-tokens", "150", "--budget", "200"), "nothing would be compressed"),
        (("--k", "1.2"), "k 1.2 is outside"),
        (("--alpha", "0"), "alpha 0.0 is outside"),
        (("--ratio", "0"), "ratio 0.0 is outside"),
        (("--budget", "8"), "smaller than the edges"),
        (("--references", "ruler/nothing"), "unknown task"),
        (("--test", "/nowhere.jsonl"), "/nowhere.jsonl"),
    ],
)
def test_bad_input_is_refused(
    checkpoint: Path, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        command(checkpoint, tmp_path, *more)


def test_the_printed_command_evaluates_the_mask(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(checkpoint, tmp_path / "masks", "--question", "agnostic") == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("Try it: ")]
    words = shlex.split(line.removeprefix("Try it: "))
    assert words[0] == "catekv"
    output = tmp_path / "run"
    assert main([*words[1:], "--samples", "1", "--quiet", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "catekv-chosen" in printed
    manifest = json.loads((output / "manifest.json").read_text())
    mask = HeadMask.load(tmp_path / "masks" / "chosen", 0.4)
    used = manifest["methods"]["catekv-chosen"]["options"]
    assert used["head_mask"]["adaptive"] == mask.to_dict()["adaptive"]
    assert (used["budget"], used["init_tokens"], used["recent_tokens"]) == (24, 4, 8)


def test_prompts_that_no_mask_compresses_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing would be compressed: with a budget of 2048"):
        command(checkpoint, tmp_path, "--budget", "2048")


def test_quick_is_small_and_gives_way_to_what_is_said() -> None:
    parser = Parser()
    add_options(parser, calibrate.OPTIONS)
    quick = calibrate.settings_from(parser.parse_args(["--quick", "--samples", "9"]), False)
    assert (quick.samples, quick.length, quick.references) == (9, 1024, ("ruler/vt",))
    assert quick.method_options["budget"] == 128
    assert len(quick.configs()) == 3
    usual = calibrate.settings_from(parser.parse_args([]), False)
    assert (usual.samples, usual.ks, usual.questions) == (50, K_GRID, ("agnostic", "aware"))
    assert "budget" not in usual.method_options


def test_what_the_contrasts_say() -> None:
    def answers(label: str, scores: list[float]) -> list[Answer]:
        return [Answer(label, "t", i, "aware", one, 0.0) for i, one in enumerate(scores)]

    found = [
        *answers("mask-0", [1.0] * 12),
        *answers("random-0", [0.0] * 12),
        *answers("random-1", [1.0] + [0.0] * 11),
        *answers("back", [1.0] * 11 + [0.0]),
    ]
    said = contrasts(found, "mask-0", {RANDOM: {"random-0", "random-1"}, REVERSED: {"back"}}, ["t"])
    assert said[RANDOM].mean == pytest.approx(11.5 / 12)
    assert said[RANDOM].low > 0 > said[REVERSED].low
    words = sentence(said)
    assert words.startswith("The chosen mask is better than random heads (+95.8 points")
    assert "not distinguishable from its own reverse (+8.3 points" in words
    assert "12 held-out samples" in words


@pytest.mark.parametrize("shape", [(30, 3), (32, 8), (80, 8)])
def test_the_picture_of_heads_fits_and_can_be_read(
    shape: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawn: list[Any] = []
    monkeypatch.setattr(figures, "write_figure", lambda path, figure: drawn.append(figure))
    values, mask = torch.rand(shape), HeadMask.random(shape, 0.4)
    title = (
        "A-model-of-a-long-name-128k-Instruct.Q4_1: ruler/vt_dense, k 0.988, alpha 0.8\ndots: all"
    )
    figures.draw_heads(tmp_path / "heads.png", {"mean CV": values, "votes": values}, mask, title)
    (figure,) = drawn
    fit_titles(figure)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    page = figure.bbox
    for text in (figure._suptitle, *(axes.title for axes in figure.axes)):
        box = text.get_window_extent(renderer)
        assert page.x0 <= box.x0 <= box.x1 <= page.x1
    panels = [axes for axes in figure.axes if axes.images]
    for axes in panels:
        (dots,) = (found for found in axes.collections if len(found.get_offsets()))
        assert len(dots.get_offsets()) == int(mask.adaptive.sum())
        cell = axes.get_window_extent().height / shape[0]
        assert cell > math.sqrt(dots.get_sizes()[0]) * figure.dpi / 72
        assert len(axes.get_yticks()) >= 10
        assert axes.images[0].get_cmap().name == "cividis"


def test_a_sweep_is_foretold_from_one_sample(
    model: CateKVModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        first_sample.FirstSample,
        "of",
        classmethod(lambda cls, *arguments: cls(read=6.0, answered=2.0)),
    )
    said = [first_sample.calibration_time(model, settings(samples=n)) for n in (3, 1500)]
    # 2 texts; 2 tasks with 1 sample and 2 questions; 8 masks and 2 random ones
    assert said[0].startswith("about 3 minutes on this machine, after the first sample (6.0 s to ")
    assert said[1].startswith("about 5.0 hours on this machine")
    assert "shorter: --quick; or fewer --samples, --held-out-samples" in said[0]
