"""Contexts and answers: asked many times, forked, batched, sampled, searched, saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scenarios import PROMPT, random_ids, with_attention
from tiny_checkpoint import save_tiny_checkpoint
from tiny_models import KeepEverything, RandomKeep
from transformers import DynamicCache

from catekv import methods
from catekv.errors import UserError
from catekv.model import CateKVModel


def wrapped(family: str = "llama", method: Any = None) -> CateKVModel:
    return CateKVModel(with_attention(family, "catekv"), method or RandomKeep(0.5))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> CateKVModel:
    folder = save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))
    return CateKVModel.from_pretrained(folder, "streaming_llm", budget=24)


def test_a_context_is_not_consumed():
    model = wrapped()
    context = model.prefill(random_ids(1, PROMPT, seed=0))
    first = model.generate_ids([5, 6, 7], context, 8, []).tokens
    other = model.generate_ids([9, 10], context, 8, []).tokens
    assert first != other
    assert model.generate_ids([5, 6, 7], context, 8, []).tokens == first
    assert context.tokens == PROMPT
    assert context.fork().cache is not context.cache


def test_an_empty_question_continues_the_context_from_its_own_last_logits():
    """Question seen before compression: the first token comes from full attention."""
    model = wrapped(method=KeepEverything())
    ids = random_ids(1, PROMPT, seed=0)
    context = model.prefill(ids, chunk_size=16)
    answer = model.generate_ids([], context, 6, [])
    stock = with_attention("llama", "sdpa")
    expected = stock.generate(ids, max_new_tokens=6, do_sample=False)[0, PROMPT:]
    assert answer.tokens == expected.tolist()
    assert answer.steps == 5


def test_stop_tokens_end_a_row_and_are_not_part_of_it():
    model = wrapped()
    context = model.prefill(random_ids(2, PROMPT, seed=0))
    rows = model.generate_ids([[5], [6]], context, 10, []).rows
    assert [len(row) for row in rows] == [10, 10]
    stop = rows[0][3]
    stopped = model.generate_ids([[5], [6]], context, 10, [stop])
    for row, full in zip(stopped.rows, rows, strict=True):
        expected = full[: full.index(stop)] if stop in full else full
        assert row == expected
    single = model.prefill(random_ids(2, PROMPT, seed=0)[:1])
    alone = model.generate_ids([5], single, 10, [stop])
    assert alone.tokens == stopped.rows[0]
    assert alone.steps == len(alone.tokens), "it went on after the stop token"


def test_rows_of_a_padded_batch_answer_as_alone():
    model = wrapped()
    rows = [random_ids(1, PROMPT - 7 * i, seed=i)[0].tolist() for i in range(3)]
    questions = [[5, 6, 7, 8], [9], [10, 11]]
    batch = model.prefill(rows, chunk_size=16)
    together = model.generate_ids(questions, batch, 8, []).rows
    for row, question, answer in zip(rows, questions, together, strict=True):
        alone = model.generate_ids(question, model.prefill(row), 8, []).tokens
        assert answer == alone


@pytest.mark.parametrize(
    ("family", "turns"),
    [("llama", [[5, 6, 7], []]), ("gemma3", [[5, 6, 7], [8]]), ("gemma3", [[5, 6, 7], []])],
)
def test_turns_that_padding_would_change_are_added_one_by_one(family: str, turns: list[list[int]]):
    model = wrapped(family)
    context = model.prefill([random_ids(1, PROMPT - 7 * i, seed=i)[0].tolist() for i in range(2)])
    with pytest.raises(UserError, match="cannot be added to one batch"):
        model.extend(context, turns)
    rows = model.generate_ids(turns, context, 8, []).rows
    for row, (turn, answer) in enumerate(zip(turns, rows, strict=True)):
        longer = model.extend(context.rows([row]), [turn])
        assert model.generate_ids([[]], longer, 8, []).rows == [answer]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_one_observation_serves_many_methods(family: str):
    model = wrapped(family)
    ids = [random_ids(1, PROMPT - 9 * i, seed=i)[0].tolist() for i in range(2)]
    dense = model.observe(ids, window=16, chunk_size=16)
    before = dense.cache.stored_bytes()
    for method in (RandomKeep(0.5), KeepEverything(), RandomKeep(0.3), RandomKeep(0.5)):
        shared = dense.compress(method)
        own = model.prefill(ids, chunk_size=16, method=method)
        assert shared.kept_share() == own.kept_share()
        for a, b in zip(shared.lengths(), own.lengths(), strict=True):
            assert torch.equal(a, b)
        question = [[5, 6], [7, 8]]
        assert (
            model.generate_ids(question, shared, 6, []).rows
            == model.generate_ids(question, own, 6, []).rows
        )
    assert dense.cache.stored_bytes() == before
    layer = next(i for i, la in enumerate(dense.cache.layers) if la in dense.cache.ragged_layers)
    observed = dense.observed(layer)
    assert observed.queries.shape[2] == 16
    assert observed.tokens == PROMPT
    with pytest.raises(UserError, match="observed without window=8"):
        model.observe(ids, window=2).compress(KeepEverything())


def test_sampling_with_a_seed_equals_stock_sampling():
    ids, question = random_ids(1, PROMPT, seed=0), random_ids(1, 4, seed=1)
    whole = torch.cat([ids, question], dim=1)
    options = {"do_sample": True, "temperature": 0.8, "top_k": 20, "num_return_sequences": 3}
    stock = with_attention("llama", "sdpa")
    torch.manual_seed(5)
    expected = stock.generate(whole, max_new_tokens=8, **options)[:, PROMPT + 4 :].tolist()
    model = wrapped(method=KeepEverything())
    context = model.prefill(ids)
    torch.manual_seed(5)
    actual = model._generate(question, context, 8, options)
    assert actual == expected
    assert len({tuple(row) for row in actual}) > 1


def test_beams_with_everything_kept_equal_stock_beams():
    ids, question = random_ids(2, PROMPT, seed=0), random_ids(2, 4, seed=1)
    whole = torch.cat([ids, question], dim=1)
    stock = with_attention("qwen3", "sdpa")
    options = {"num_beams": 3, "do_sample": False}
    expected = stock.generate(whole, max_new_tokens=6, **options)[:, PROMPT + 4 :].tolist()
    model = wrapped("qwen3", KeepEverything())
    context = model.prefill(ids)
    assert model._generate(question, context, 6, options) == expected
    assert context.tokens == PROMPT


def test_own_loop_equals_transformers_greedy():
    model = wrapped()
    context = model.prefill([random_ids(1, PROMPT - 4 * i, seed=i)[0].tolist() for i in range(2)])
    question = [[5, 6, 7], [8, 9, 10]]
    expected = model._generate(question, context, 8, {"do_sample": False})
    assert model.generate_ids(question, context, 8, []).rows == expected


def test_saved_contexts_answer_the_same(tmp_path: Path):
    model = wrapped("gemma3")
    context = model.prefill([random_ids(1, PROMPT - 4 * i, seed=i)[0].tolist() for i in range(2)])
    context.save(tmp_path / "context")
    loaded = model.load_context(tmp_path / "context")
    question = [[5, 6, 7], [8]]
    assert (
        model.generate_ids(question, loaded, 8, []).rows
        == model.generate_ids(question, context, 8, []).rows
    )
    assert loaded.timings == context.timings
    assert model.generate_ids([[], []], loaded, 3, []).rows[0]
    with pytest.raises(UserError, match="no saved"):
        model.load_context(tmp_path / "other")
    (tmp_path / "context" / "context.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="no saved context"):
        model.load_context(tmp_path / "context")


def test_a_context_that_cannot_be_written(tmp_path: Path):
    model = wrapped()
    context = model.prefill(random_ids(1, PROMPT, seed=0))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        context.save(tmp_path / "file" / "context")


def test_a_refused_save_leaves_an_older_context_as_it_was(tmp_path: Path):
    model = wrapped()
    context = model.prefill(random_ids(1, PROMPT, seed=0))
    context.save(tmp_path)
    choosing = methods.create("pyramidinfer_kv")
    other = model.prefill(random_ids(1, 40, seed=1), method=choosing)
    with pytest.raises(UserError, match="not saved"):
        other.save(tmp_path)
    loaded = model.load_context(tmp_path)
    assert torch.equal(loaded.input_ids, context.input_ids)
    assert torch.equal(loaded.last_logits, context.last_logits)


def test_a_cache_saved_over_a_context_is_no_context(tmp_path: Path):
    model = wrapped()
    model.prefill(random_ids(1, PROMPT, seed=0)).save(tmp_path)
    model.prefill(random_ids(1, PROMPT, seed=1)).cache.save(tmp_path)
    with pytest.raises(UserError, match="no saved context"):
        model.load_context(tmp_path)


def test_text_in_text_out(checkpoint: CateKVModel):
    words = " ".join(checkpoint.tokenizer.convert_ids_to_tokens(range(20, 60)))
    context = checkpoint.prefill(words)
    answer = checkpoint.generate(words[:30], context=context, max_new_tokens=5)
    assert isinstance(answer, str)
    assert answer == checkpoint.generate(words[:30], context=context, max_new_tokens=5)
    several = checkpoint.generate(
        words[:30], context=context, max_new_tokens=5, num_beams=2, num_return_sequences=2
    )
    assert isinstance(several, list)
    assert len(several) == 2
    assert isinstance(checkpoint.generate(words, max_new_tokens=3), str)
    greedy = checkpoint.generate(words, max_new_tokens=3, do_sample=False)
    assert greedy == checkpoint.generate(
        checkpoint.encode(words)[0][:, -1:],
        context=checkpoint.prefill(checkpoint.encode(words)[0][:, :-1]),
        max_new_tokens=3,
    )
    assert len(checkpoint.generate([words, words[:40]], max_new_tokens=3)) == 2


def test_special_tokens_begin_a_context_and_not_a_question(checkpoint: CateKVModel):
    begin, _ = checkpoint.encode("the", begin=True)
    follow, _ = checkpoint.encode("the", begin=False)
    expected = checkpoint.tokenizer("the")["input_ids"]
    assert begin[0].tolist() == expected
    assert follow[0].tolist() == checkpoint.tokenizer("the", add_special_tokens=False)["input_ids"]


def test_wrong_requests(checkpoint: CateKVModel):
    model = wrapped()
    context = model.prefill(random_ids(1, PROMPT, seed=0))
    with pytest.raises(UserError, match="without a tokenizer"):
        model.generate("question", context=context)
    with pytest.raises(UserError, match="without a tokenizer"):
        model.prefill("text")
    with pytest.raises(UserError, match="empty"):
        model.prefill([])
    with pytest.raises(UserError, match="context window of 512"):
        model.prefill(random_ids(1, 513, seed=0))
    with pytest.raises(UserError, match="context window of 512"):
        model.generate_ids([5], context, 512 - PROMPT)
    with pytest.raises(UserError, match="2 questions for a context of 1"):
        model.generate_ids([[5], [6]], context, 4)
    with pytest.raises(UserError, match="max_new_tokens"):
        model.generate_ids([5], context, 0)
    with pytest.raises(UserError, match="attention_mask"):
        model.prefill(random_ids(1, 5, seed=0), attention_mask=torch.ones(1, 4))
    with pytest.raises(UserError, match="no method"):
        CateKVModel(model.model).prefill([3, 4])
    text = checkpoint.prefill([5, 6, 7])
    for name in ("assistant_model", "prompt_lookup_num_tokens"):
        with pytest.raises(UserError, match="rolled back"):
            checkpoint.generate([5], context=text, **{name: 2})
    with pytest.raises(UserError, match="at least one question token"):
        checkpoint.generate([], context=text, do_sample=True)


def test_timings_and_sizes_of_a_context():
    model = wrapped()
    context = model.prefill(random_ids(1, PROMPT, seed=0), chunk_size=16)
    assert set(context.timings) == {"prefill_seconds", "compress_seconds"}
    assert all(seconds > 0 for seconds in context.timings.values())
    plain = DynamicCache(config=model.config)
    with torch.no_grad():
        model.model(random_ids(1, PROMPT, seed=0), past_key_values=plain)
    expected = sum(t.nbytes for layer in plain.layers for t in (layer.keys, layer.values))
    assert context.full_bytes() == expected
    assert context.stored_bytes() < expected
    answer = model.generate_ids([5, 6], context, 4, [])
    assert answer.question_seconds > 0
    assert answer.decode_seconds > 0
