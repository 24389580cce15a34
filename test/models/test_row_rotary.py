"""Rotary scalings that follow the length turn each row of a batch as it is turned alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from scenarios import random_ids
from tiny_models import KeepEverything, tiny_model
from torch import Tensor

from catekv import methods
from catekv.errors import UserError
from catekv.model import CateKVModel

DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
MODELS = {
    "dynamic": ("llama", {"max_position_embeddings": 32, "rope_parameters": DYNAMIC}),
    "longrope": ("phi3-long", {}),
}
#: below, at, just above and far above the original length of 32 tokens
LENGTHS = (20, 32, 33, 70)
QUESTIONS = (3, 1, 4, 2)
STEPS = 14


def stock(kind: str) -> Any:
    family, changes = MODELS[kind]
    return tiny_model(family, "sdpa", **changes)


def rows() -> tuple[list[Tensor], list[Tensor]]:
    ids = random_ids(len(LENGTHS), max(LENGTHS), seed=1)
    questions = random_ids(len(LENGTHS), max(QUESTIONS), seed=2)
    return (
        [row[:length] for row, length in zip(ids, LENGTHS, strict=True)],
        [row[:length] for row, length in zip(questions, QUESTIONS, strict=True)],
    )


def padded(texts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    width = max(len(text) for text in texts)
    ids, mask = (torch.zeros(len(texts), width, dtype=torch.long) for _ in range(2))
    for row, text in enumerate(texts):
        ids[row, width - len(text) :] = text
        mask[row, width - len(text) :] = 1
    return ids, mask


def prefill(model: CateKVModel, texts: Sequence[Tensor]) -> Any:
    ids, mask = padded(texts)
    return model.prefill(ids, attention_mask=mask)


@torch.no_grad()
def alone(kind: str, context: Tensor, question: Tensor) -> list[int]:
    """What a new stock model answers with its own cache, fed context, question and tokens."""
    model = stock(kind)
    cache = model(context[None], use_cache=True).past_key_values
    fed, tokens = question[None], []
    for _ in range(STEPS):
        logits = model(fed, past_key_values=cache, use_cache=True).logits[:, -1]
        fed = logits.argmax(dim=-1, keepdim=True)
        tokens.append(int(fed))
    return tokens


@pytest.mark.parametrize("chunk", [None, 16])
@pytest.mark.parametrize("kind", MODELS)
def test_rows_on_both_sides_of_the_original_length(kind: str, chunk: int | None) -> None:
    contexts, questions = rows()
    expected = [alone(kind, *texts) for texts in zip(contexts, questions, strict=True)]
    model = CateKVModel(stock(kind), KeepEverything())
    ids, mask = padded(contexts)
    context = model.prefill(ids, attention_mask=mask, chunk_size=chunk)
    asked = [question.tolist() for question in questions]
    answer = model.generate_ids(asked, context, STEPS, [])
    assert answer.rows == expected
    # a second turn goes the way of a new context
    again = model.generate_ids(
        asked, model.prefill(ids, attention_mask=mask, chunk_size=chunk), STEPS, []
    )
    assert again.rows == expected


@pytest.mark.parametrize("kind", MODELS)
def test_what_was_read_before_changes_nothing(kind: str) -> None:
    contexts, questions = rows()
    model = CateKVModel(stock(kind), KeepEverything())
    for row in (3, 2, 3, 0, 2, 1):
        answer = model.generate_ids(
            questions[row][None], model.prefill(contexts[row][None]), STEPS, []
        )
        assert answer.tokens == alone(kind, contexts[row], questions[row])


@pytest.mark.parametrize("kind", MODELS)
def test_a_copy_of_the_model_has_tables_of_its_own(kind: str) -> None:
    contexts, questions = rows()
    model = CateKVModel(stock(kind), KeepEverything())
    twin = CateKVModel(copy.deepcopy(model.model), KeepEverything())
    del model
    asked = [question.tolist() for question in questions]
    answer = twin.generate_ids(asked, prefill(twin, contexts), STEPS, [])
    assert answer.rows == [alone(kind, *texts) for texts in zip(contexts, questions, strict=True)]


@pytest.mark.parametrize("kind", MODELS)
def test_methods_that_turn_stored_keys_want_rows_of_one_rotation(kind: str) -> None:
    contexts, _ = rows()
    method = methods.create("shadowkv", budget=16, rank=8, chunk=4, outliers=1)
    model = CateKVModel(stock(kind), method)
    with pytest.raises(UserError, match="rotated by different frequencies"):
        prefill(model, contexts)
    prefill(model, contexts[:2])
