"""Logits that are not finite end in an error: the likeliest of them would look like an answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scenarios import random_ids
from tiny_models import RandomKeep, tiny_model

from catekv.errors import UserError
from catekv.model import CateKVModel
from catekv.models.finite import broken_rows, refuse_not_finite

DAMAGED = 5
NOT_FINITE = "logits that are not finite"


@pytest.fixture(params=["llama", "gemma3"])
def model(request: pytest.FixtureRequest) -> CateKVModel:
    """A model with one damaged embedding row, which the check on loading does not read."""
    stock = tiny_model(request.param)
    with torch.no_grad():
        stock.get_input_embeddings().weight[DAMAGED] = torch.nan
    return CateKVModel(stock, RandomKeep(0.5))


def sound_ids(batch: int) -> torch.Tensor:
    ids = random_ids(batch, 40, seed=0)
    return ids.masked_fill(ids == DAMAGED, DAMAGED + 1)


def test_which_rows_are_broken():
    inf, nan = torch.inf, torch.nan
    logits = torch.tensor([[1.0, 2.0], [nan, 2.0], [-inf, 2.0], [inf, 2.0], [2.0, nan]])
    assert broken_rows(logits)[:, 0].tolist() == [False, True, False, True, True]
    with pytest.raises(UserError, match=rf"it ends \(sequences 1, 3, 4\) with {NOT_FINITE}"):
        refuse_not_finite(logits, "it ends")
    refuse_not_finite(logits[[0, 2]], "it ends")


@pytest.mark.parametrize("chunk_size", [None, 16])
def test_a_prompt_that_ends_in_broken_logits_is_refused(model: CateKVModel, chunk_size: int | None):
    ids = sound_ids(2)
    ids[1, 30] = DAMAGED
    with pytest.raises(UserError, match=rf"prompt ends \(sequences 1\) with {NOT_FINITE}"):
        model.prefill(ids, chunk_size)
    with pytest.raises(UserError, match=NOT_FINITE):
        model.observe(ids)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 0}, {"graph": "off"}])
def test_an_answer_that_goes_on_with_broken_logits_is_refused(
    model: CateKVModel, options: dict[str, Any]
):
    context = model.prefill(sound_ids(2))
    with pytest.raises(UserError, match=f"answer of sequence 1 goes on with {NOT_FINITE}"):
        model.generate_ids([[9, 8], [DAMAGED, 8]], context, 3, **options)
    assert len(model.generate_ids([[9, 8], [7, 8]], context, 3, **options).rows[1]) == 3


def test_a_row_that_has_ended_may_hold_anything(model: CateKVModel):
    context, questions = model.prefill(sound_ids(2)), [[9, 8], [11, 8]]
    first = model.generate_ids(questions, context, 4, stop_token_ids=[])
    end = first.rows[0][0]
    assert end not in [*questions[0], *questions[1], *first.rows[1]]
    with torch.no_grad():
        model.model.get_input_embeddings().weight[end] = torch.nan
    context.cache.weights = None  # the weights were changed on purpose
    with pytest.raises(UserError, match="answer of sequence 0"):
        model.generate_ids(questions, context, 4, stop_token_ids=[])
    rows = model.generate_ids(questions, context, 4, stop_token_ids=[end]).rows
    assert rows == [[], first.rows[1]]
