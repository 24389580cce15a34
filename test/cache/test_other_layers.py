"""Models some of whose layers have no KV cache, or a window: evaluations, beams, masks, sizes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import any_model
from scenarios import random_ids
from tiny_models import KeepEverything, RandomKeep
from toy_tasks import register, toy_sample
from transformers import AutoModelForCausalLM

from catekv.cache.cache import RaggedCache, compressing_layers
from catekv.cache.plain_layers import described
from catekv.calibration import CVConfig
from catekv.calibration.head_masks.reference import observe_prompt
from catekv.decode.context import stack
from catekv.evaluation.records.records import RunDirectory
from catekv.evaluation.run.request import Request
from catekv.evaluation.run.runner import evaluate
from catekv.evaluation.run.session import open_model, settings_for
from catekv.model import CateKVModel
from catekv.tasks.wording.tokenizer import build_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning")
#: layer 0 has no KV cache in the first and a window in the second
NAMES = ("qwen3_next", "gemma3")
KEEP = RandomKeep()


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CateKVModel:
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = build_tokenizer()
    own = any_model(request.param, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    own.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return open_model(Request(model=str(folder), device="cpu"))


def test_batches_with_questions_of_unequal_length_give_single_answers(
    model: CateKVModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = ("the", "the day and the man", "a", "the day and")
    samples = [
        dataclasses.replace(toy_sample(i, 70 + 9 * i), question=question)
        for i, question in enumerate(questions)
    ]
    register(monkeypatch, samples)
    found: list[list[Any]] = []
    for batch in (1, 4):
        request = Request(
            model=model.model_id,
            tasks=("toy/rows",),
            lengths=(0,),
            samples=4,
            methods=("full", "snapkv:window=16,budget=24"),
            batch_size=batch,
        )
        outcome = evaluate(
            model, settings_for(request, model), tmp_path / str(batch), progress=False
        )
        assert outcome.failed == 0
        found.append(list(RunDirectory(tmp_path / str(batch)).records().values()))
    for one, other in zip(*found, strict=True):
        assert (one.batch, other.batch) == (1, 4)
        assert one.prediction == other.prediction
        assert one.kept == other.kept
        assert one.kept_share == pytest.approx(other.kept_share)


def test_heads_get_types_in_the_layers_that_are_compressed(model: CateKVModel) -> None:
    config = CVConfig(window=8, chunk_size=4, init_tokens=4, recent_tokens=8, guard_tokens=8)
    (cvs,) = observe_prompt(model, random_ids(90, seed=0).tolist(), [config])
    typed = [i for i, row in enumerate(cvs) if bool(row.isfinite().all())]
    assert typed == compressing_layers(model.config)
    assert bool(cvs[[i for i in range(len(cvs)) if i not in typed]].isnan().all())


def test_beams_are_those_of_the_stock_model(model: CateKVModel) -> None:
    ids, question = random_ids(1, 60, seed=1), random_ids(1, 1, seed=2)
    stock = AutoModelForCausalLM.from_pretrained(model.model_id, dtype=torch.float32).eval()
    options = {"num_beams": 2, "do_sample": False, "eos_token_id": None}
    right = stock.generate(torch.cat([ids, question], dim=1), max_new_tokens=5, **options)
    context = model.prefill(ids, method=KeepEverything())
    answer = model.generate(question, context, max_new_tokens=5, **options)
    assert answer == model.tokenizer.decode(right[0, 61:], skip_special_tokens=True)


def test_stock_options_answer_questions_of_unequal_length_as_single_ones(
    model: CateKVModel,
) -> None:
    contexts = [random_ids(n, seed=n).tolist() for n in (50, 64)]
    questions = [[5, 6, 9, 9, 9, 9], [7]]
    options: dict[str, Any] = {"do_sample": False, "repetition_penalty": 1.3, "max_new_tokens": 4}
    whole = model.generate(questions, model.prefill(contexts, method=KeepEverything()), **options)
    for context, question, answer in zip(contexts, questions, whole, strict=True):
        alone = model.prefill(context, method=KeepEverything())
        assert model.generate(question, alone, **options) == answer


def test_sampled_answers_do_not_depend_on_the_batch(model: CateKVModel) -> None:
    context = model.prefill([random_ids(50, seed=n).tolist() for n in range(2)], method=KEEP)
    streamed: list[tuple[int, str]] = []
    drawn = model.generate_ids(
        [[5, 6, 9], [7]],
        context,
        4,
        [],
        seed=3,
        stream=lambda text, sequence: streamed.append((sequence, text)),
    )
    same = model.generate_ids([[5, 6, 9], [7, 8, 9]], context, 4, [], seed=3)
    assert drawn.rows[0] == same.rows[0]
    assert {sequence for sequence, _ in streamed} == {0, 1}
    assert drawn.texts is not None
    for row in range(2):
        assert "".join(text for place, text in streamed if place == row) == drawn.texts[row]


def test_states_of_a_prompt_are_not_shared_between_its_contexts(model: CateKVModel) -> None:
    dense = model.observe(random_ids(60, seed=4).tolist(), window=8)
    first, second = (dense.compress(KEEP) for _ in range(2))
    with torch.no_grad():
        model.model(torch.tensor([[5]]), past_key_values=first.cache, use_cache=True)
    fresh = model.prefill(random_ids(60, seed=4).tolist(), method=KEEP)
    right = model.generate_ids([7], fresh, 4, []).tokens
    assert model.generate_ids([7], second, 4, []).tokens == right
    both = stack([second, dense.compress(KEEP)])
    assert model.generate_ids([[7], [7]], both, 4, []).rows == [right, right]


def test_recurrent_states_count_among_the_bytes() -> None:
    model = CateKVModel(any_model("qwen3_next"), KEEP)
    caches = [model.prefill(random_ids(60, seed=0).tolist()).cache]
    caches.append(model.prefill([random_ids(60, seed=0).tolist()] * 2).cache)
    states = [caches[0].layers[i] for i in (0, 2)]
    size = sum(s.conv_states[0].nbytes + s.recurrent_states[0].nbytes for s in states)
    assert size > 0
    entries = sum(layer.full_bytes() for layer in caches[0].ragged_layers)
    assert caches[0].full_bytes() == size + entries
    assert caches[1].full_bytes() == 2 * caches[0].full_bytes()
    assert [tuple(own.shape) for own in caches[1].lengths()] == [(2, 0), (2, 4)] * 2


def test_rows_without_a_question_go_on_from_their_context() -> None:
    model = CateKVModel(any_model("llama"), KEEP)
    contexts = [random_ids(n, seed=n).tolist() for n in (30, 44)]
    rows = model.generate_ids([[], [5, 6]], model.prefill(contexts), 4, []).rows
    assert rows[0] == model.generate_ids([], model.prefill(contexts[0]), 4, []).tokens
    assert rows[1] == model.generate_ids([5, 6], model.prefill(contexts[1]), 4, []).tokens


@pytest.mark.parametrize("name", ["snapkv", "dynamickv", "pyramidinfer_kv"])
def test_nothing_is_compressed_where_every_layer_has_a_window(name: str) -> None:
    model = CateKVModel(any_model("mistral-window"), None)
    contexts = [random_ids(n, seed=n).tolist() for n in (3, 64)]
    answers = [
        model.generate_ids([[5, 6], [7]], model.prefill(contexts, method=method), 4, []).rows
        for method in ("full", name)
    ]
    assert answers[0] == answers[1]


def test_layers_are_named_by_what_they_are() -> None:
    layers = RaggedCache(any_model("qwen3_next").config, None).layers
    assert described(layers, [0, 2]) == "layers 0, 2 (linear attention)"
    layers = RaggedCache(any_model("gemma3").config, None).layers
    assert described(layers, [0]) == "layer 0 (sliding window)"
    layers = RaggedCache(any_model("falcon_h1").config, None).layers
    assert described(layers, [1]) == "layer 1 (linear attention beside full attention)"
