"""Coalitions on models, whole score runs, and the command ``catekv cokv``."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import LAYERS, tiny_model

import catekv
from catekv import methods, tasks
from catekv.calibration.cokv.coalitions import CoalitionScorer, masked_context, players
from catekv.calibration.cokv.comparison import compare_methods, compared_method
from catekv.calibration.cokv.files import ScoreFile
from catekv.calibration.cokv.headkv_probe import probe, write_probe
from catekv.calibration.cokv.scoring import Settings, score
from catekv.calibration.cokv.split import SampleSet, Split, write_splits
from catekv.calibration.cokv.tuning import Tuned, tune
from catekv.commands.cli import main
from catekv.errors import UserError
from catekv.evaluation.run.asking import QUESTIONS, Trial, split_prompt
from catekv.kernels.ragged import storage_bytes
from catekv.methods import Needs
from catekv.models import embedded
from catekv.tasks.core.prompt import EncodedPrompt

WINDOW = 4
TOKENS = 40


@pytest.fixture(scope="module")
def tiny() -> catekv.CateKVModel:
    return catekv.CateKVModel(tiny_model("qwen3"), methods.create("full"))


@pytest.fixture(scope="module")
def model() -> catekv.CateKVModel:
    return catekv.CateKVModel.from_pretrained(str(embedded.path()), method="full", device="cpu")


def coalitions(count: int, kv_heads: int = 4) -> np.ndarray:
    random = np.random.default_rng(3)
    chosen = random.random((count, LAYERS, kv_heads)) < 0.5
    chosen[0], chosen[1] = True, False
    return chosen


@torch.no_grad()
def logits(model: catekv.CateKVModel, context: catekv.Context, ids: list[int]) -> torch.Tensor:
    batch = context.input_ids.shape[0]
    fed = torch.tensor([ids] * batch)
    cache = context.cache.fork()
    return model.model(fed, past_key_values=cache, use_cache=True).logits


@pytest.mark.parametrize("ids", [[5], [5, 9, 11]], ids=["one token", "a question"])
def test_a_masked_head_sees_its_window_and_nothing_else(
    tiny: catekv.CateKVModel, ids: list[int]
) -> None:
    prompt = torch.randint(1, 90, (1, TOKENS), generator=torch.Generator().manual_seed(1))
    dense = tiny.observe(prompt, window=WINDOW)
    chosen = coalitions(6)
    found = logits(tiny, masked_context(dense, chosen, WINDOW), ids)
    for place, one in enumerate(chosen):
        table = np.where(one, TOKENS, 0).tolist()
        method = methods.create("snapkv", window=WINDOW, budgets={"kind": "table", "counts": table})
        context = dense.compress(method)
        assert [layer[0].tolist() for layer in context.lengths()] == np.where(
            one, TOKENS, WINDOW
        ).tolist()
        torch.testing.assert_close(found[place], logits(tiny, context, ids)[0], atol=2e-5, rtol=0)


def test_a_batch_of_coalitions_takes_one_dense_cache(tiny: catekv.CateKVModel) -> None:
    prompt = torch.randint(1, 90, (1, 300), generator=torch.Generator().manual_seed(1))
    dense = tiny.observe(prompt, needs=Needs())
    before = dense.cache.stored_bytes()
    context = masked_context(dense, coalitions(8), WINDOW)
    assert dense.cache.stored_bytes() == before
    both = [*dense.cache.ragged_layers, *context.cache.ragged_layers]
    further = storage_bytes([one for layer in both for one in layer.tensors()]) - before
    windows = 8 * before * WINDOW / 300  # of eight sequences
    assert further < 1.2 * windows
    assert [layer.shape for layer in context.lengths()] == [(8, 4)] * LAYERS


def test_the_dense_prompt_is_not_consumed(tiny: catekv.CateKVModel) -> None:
    prompt = torch.randint(1, 90, (1, TOKENS), generator=torch.Generator().manual_seed(2))
    dense = tiny.observe(prompt, needs=Needs())
    context = masked_context(dense, coalitions(3), WINDOW)
    first = tiny.generate_ids([[7]] * 3, context, 6, []).rows
    again = masked_context(dense, coalitions(3), WINDOW)
    assert tiny.generate_ids([[7]] * 3, again, 6, []).rows == first
    assert dense.tokens == TOKENS


def test_what_is_no_game_is_refused(tiny: catekv.CateKVModel) -> None:
    prompt = torch.randint(1, 90, (2, TOKENS))
    dense = tiny.observe(prompt[:1], needs=Needs())
    with pytest.raises(UserError, match=r"\[2, 4\] layers and heads do not fit the model's 3 x 4"):
        masked_context(dense, coalitions(2)[:, :2])
    with pytest.raises(UserError, match="one prompt at a time"):
        masked_context(tiny.observe(prompt, needs=Needs()), coalitions(2))
    sliding = catekv.CateKVModel(tiny_model("gemma3"), methods.create("full"))
    with pytest.raises(UserError, match=r"layers? .*\(sliding window\).* not compressed"):
        players(sliding)


def test_stored_lengths_of_a_ragged_cache(golden) -> None:
    three = tiny_model("qwen3", num_attention_heads=6, num_key_value_heads=3)
    model = catekv.CateKVModel(three, methods.create("full"))
    prompt = torch.randint(1, 90, (1, TOKENS), generator=torch.Generator().manual_seed(4))
    for case in golden("cokv", "flat_cache"):
        given, expected = case["inputs"], case["expected"]["states"]
        budgets = {"kind": "table", "counts": [given["extra"]]}
        method = methods.create("snapkv", window=given["window"], budgets=budgets)
        cache = model.prefill(prompt, method=method).cache
        for step, state in enumerate(expected):
            if step:
                with torch.no_grad():
                    model.model(torch.tensor([[step]]), past_key_values=cache, use_cache=True)
            for layer in cache.lengths():
                lengths = layer[0].tolist()
                assert lengths == state["head_lens"]
                assert [0, *np.cumsum(lengths)] == state["cu_klen"]
                assert max(lengths) == state["max_seqlen_k"]
            assert cache.get_seq_length() == TOKENS + step


def test_which_tokens_are_read_before_heads_are_masked() -> None:
    prompt = EncodedPrompt([1, 2, 3], [4, 5])
    found = {question: split_prompt(prompt, question) for question in QUESTIONS}
    assert found == {
        "published": ([1, 2, 3, 4, 5], []),
        "aware": ([1, 2, 3, 4], [5]),
        "agnostic": ([1, 2, 3], [4, 5]),
    }
    with pytest.raises(UserError, match="use published, aware, agnostic"):
        split_prompt(prompt, "never")


def small(model: catekv.CateKVModel, count: int = 2, first: int = 0) -> list[tasks.Sample]:
    return tasks.build("ruler/niah_multikey_1", model.tokenizer, 128, count, first=first)


def test_answers_of_a_batch_are_those_of_single_coalitions(model: catekv.CateKVModel) -> None:
    random = np.random.default_rng(1)
    chosen = [random.random(16) < 0.6 for _ in range(6)]
    trial = Trial.of(small(model, 1)[0], model.tokenizer, "agnostic")
    together = CoalitionScorer(model, batch_size=6).answers(trial, chosen)
    alone = CoalitionScorer(model, batch_size=1, keep_prompts=True)
    assert [alone.answers(trial, [one])[0] for one in chosen] == together
    everyone = np.ones(16, dtype=bool)
    assert alone.scores(trial, [everyone, ~everyone]) == [1.0, 0.0]


SETTINGS = {"slices": (6, 8), "check_every": 8, "max_draws": 16, "tolerance": 1e-9}


def test_a_score_run_finds_the_heads_that_retrieve(
    model: catekv.CateKVModel, tmp_path: Path
) -> None:
    settings = Settings(**SETTINGS, question="agnostic")
    outcome = score(model, small(model), tmp_path / "run", settings, progress=False)
    assert outcome.path is not None
    assert not outcome.converged
    file = ScoreFile.load(outcome.path)
    assert file.recipe["utility_full"] == 1.0
    assert file.recipe["converged"] is False
    assert int(file.scores().argmax()) in (4, 5)  # layer 1 matches and copies, heads 0 and 1
    with (tmp_path / "run" / "mae.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["draws"]) for row in rows] == [8, 16]
    assert float(rows[-1]["mae"]) == pytest.approx(file.recipe["mae"])
    parts = [Settings(**SETTINGS, question="agnostic", part=part, parts=2) for part in (1, 0)]
    outcomes = [score(model, small(model), tmp_path / "two", one, progress=False) for one in parts]
    assert outcomes[0].path is None
    assert outcomes[1].path is not None
    np.testing.assert_allclose(ScoreFile.load(outcomes[1].path).scores(), file.scores(), atol=1e-12)


def test_wrong_score_runs_are_refused(model: catekv.CateKVModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least one"):
        score(model, [], tmp_path)
    with pytest.raises(UserError, match="slice 16 is outside 1 to 15"):
        score(model, small(model), tmp_path, Settings(slices=(16,)))
    for wrong, message in (
        ({"max_draws": 4}, "at least check_every"),
        ({"tolerance": 0.0}, "is never reached"),
        ({"part": 2, "parts": 2}, "process 3 of 2"),
    ):
        with pytest.raises(UserError, match=message):
            Settings(**wrong)
    few = Settings(slices=(1,), check_every=2, max_draws=2)
    with pytest.raises(UserError, match="slice 1 has no estimate for layer"):
        score(model, small(model, 1), tmp_path / "few", few, progress=False)
    assert not (tmp_path / "few").exists(), "nothing is measured before it is said"


def toy_scores(model: catekv.CateKVModel, samples: list[tasks.Sample], folder: Path) -> Path:
    settings = Settings(slices=(8,), check_every=10, max_draws=10, question="agnostic")
    outcome = score(model, samples, folder, settings, progress=False)
    assert outcome.path is not None
    return outcome.path


def test_alpha_is_chosen_on_validation_samples_only(
    model: catekv.CateKVModel, tmp_path: Path
) -> None:
    file = ScoreFile.load(toy_scores(model, small(model), tmp_path))
    tuned = tune(model, file, small(model), [24], [1, 8, 15])
    assert set(tuned.scores[24]) == {1, 8, 15}
    assert tuned.best(24) in (1, 8, 15)
    assert Tuned.read(tuned.write(tmp_path / "alpha.json")) == tuned
    with pytest.raises(UserError, match="not at 32"):
        tuned.best(32)
    with pytest.raises(UserError, match="sample 5 is not one of the validation samples"):
        tune(model, file, small(model, 1, first=5), [24])
    other = ScoreFile(2, 8, file.runs, file.recipe)
    with pytest.raises(UserError, match="2 layers x 8 KV heads but the model has 4 layers x 4"):
        tune(model, other, small(model), [24])
    foreign = ScoreFile(4, 4, file.runs, {**file.recipe, "config_hash": "other"})
    with pytest.raises(UserError, match="made with another model"):
        tune(model, foreign, small(model), [24])


def test_of_equal_alphas_the_smallest_is_best() -> None:
    assert Tuned({8: {5: 0.5, 1: 0.5, 10: 0.4}}).best(8) == 1


def test_compared_methods_keep_equally_much(model: catekv.CateKVModel, tmp_path: Path) -> None:
    file = ScoreFile.load(toy_scores(model, small(model), tmp_path))
    heads = write_probe(tmp_path / "headkv.json", probe(model, small(model, 2, first=9)))
    assert len(json.loads(heads.read_text())) == 4 * 8
    options = {
        "cokv": {"scores": file.estimates().tolist(), "alpha": 4},
        "headkv": {"scores": str(heads)},
    }
    compared = {
        name: (compared_method(name, 20, **options.get(name, {})), 20)
        for name in ("snapkv", "pyramidkv", "adakv", "headkv", "cokv")
    }
    full = {"full": (compared_method("full", 0), None)}
    answers = compare_methods(model, small(model, 1, first=4), {**full, **compared}, "agnostic")
    assert {name: found[0].stored for name, found in answers.items()} == {
        "full": answers["full"][0].stored,
        **dict.fromkeys(compared, 20 * 16),
    }
    assert answers["full"][0].stored > 20 * 16
    assert answers["full"][0].score == 1.0
    with pytest.raises(UserError, match="does not hold the window"):
        compared_method("cokv", 4)
    with pytest.raises(UserError, match="compare full"):
        compared_method("h2o", 64)


def test_a_window_that_is_the_whole_prompt_is_refused(
    model: catekv.CateKVModel, tmp_path: Path
) -> None:
    settings = Settings(slices=(6,), max_draws=10, window=4096)
    with pytest.raises(UserError, match="smaller --window"):
        score(model, small(model), tmp_path / "scores", settings, progress=False)


def test_a_split_serves_the_command(
    model: catekv.CateKVModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = SampleSet("ruler/niah_multikey_1", 128, 8)
    split = Split.make(samples, samples.build(model.tokenizer), 0.25)
    path = write_splits(tmp_path / "split.json", [split])
    run = ["cokv", "score", "--task", samples.task, "--split", str(path), "--quiet"]
    run += ["--question", "agnostic", "--slices", "6,8", "--max-draws", "10"]
    output = tmp_path / "scores"
    assert main([*run, "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert "2 validation samples" in shown
    assert "players  16 (4 layers x 4 KV heads), slices 6, 8" in shown
    recipe = ScoreFile.load(output / "scores.npz").recipe
    assert recipe["sample_hashes"] == list(split.validation.values())
    assert recipe["samples"]["positions"] == list(split.validation)
    assert main([*run, "--output", str(output), "--no-resume"]) == 2
    assert "use --overwrite" in capsys.readouterr().err
    assert main([*run, "--output", str(output), "--seed", "1"]) == 2
    assert "different: seed" in capsys.readouterr().err
    scores = str(output / "scores.npz")
    tuned = ["cokv", "tune", "--scores", scores, "--capacities", "16", "--alphas", "1,12"]
    assert main([*tuned, "--quiet"]) == 0
    assert "capacity 16: alpha" in capsys.readouterr().out
    assert Tuned.read(output / "alpha.json").best(16) in (1, 12)
    assert main([*tuned, "--quiet"]) == 2
    assert "alpha.json is there; use --overwrite" in capsys.readouterr().err
    assert main([*tuned, "--quiet", "--output", "/dev/null/x"]) == 2
    assert "a part of the path is a file" in capsys.readouterr().err
    show = ["cokv", "show", scores]
    assert main([*show, "--shape", "4x4"]) == 0
    capsys.readouterr()
    for words, message in (
        (["--shape", "3x3"], "leave out --shape"),
        (["--trust-pickle"], "leave out --trust-pickle"),
        ([str(output / ".." / "scores" / "scores.npz")], "twice"),
    ):
        assert main([*show, *words]) == 2
        assert message in capsys.readouterr().err
    assert main(["cokv", "show", scores, "--compare", scores]) == 0
    assert "correlation 1.000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--processes", "3/2"], "takes I/N with I from 1 to N"),
        (["--slices", "many"], "--slices takes whole numbers"),
        (["--split", "missing.json"], "cannot read the split"),
        (["--task-option", "depth"], "NAME=VALUE"),
        (["--max-draws", "1"], "at least check_every"),
        (["--overwrite", "--processes", "1/2"], "deletes the draws of the others"),
    ],
)
def test_wrong_words_are_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["cokv", "score", "--task", "ruler/vt", "--output", str(tmp_path / "run"), *words]
    assert main(run) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
