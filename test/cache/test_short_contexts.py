"""Contexts of one to three tokens, alone and as rows of a batch, with every method."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from tiny_models import tiny_model

from catekv import methods
from catekv.errors import UserError
from catekv.methods.head_mask import HeadMask
from catekv.methods.per_sequence import together
from catekv.model import CateKVModel

#: cannot be made without a file, or not used with a cache at all
LEFT_OUT = {"atskv", "pyramidinfer", "duo_attention"}
QUESTION = [5, 6]


@pytest.fixture(scope="module")
def model() -> CateKVModel:
    return CateKVModel(tiny_model("llama"), None)


def made(name: str, model: CateKVModel, **options: Any) -> methods.Method:
    known = {item.name for item in dataclasses.fields(methods.method_class(name))}
    shape = model.shape
    if "head_mask" in known:
        options["head_mask"] = HeadMask.random(shape, 0.4)
    if "scores" in known:
        options["scores"] = torch.rand(shape.layers, shape.kv_heads).tolist()
    return methods.create(name, **options)


def answers(model: CateKVModel, method: methods.Method, lengths: tuple[int, ...]) -> list[Any]:
    rows = [list(range(3, 3 + length)) for length in lengths]
    context = model.prefill(rows, method=method)
    return model.generate_ids([QUESTION] * len(rows), context, 3, []).rows


def check(model: CateKVModel, method: methods.Method) -> None:
    alone = {length: answers(model, method, (length,))[0] for length in (1, 2, 3)}
    for lengths in ((1, 40), (40, 2, 1), (3, 1), (1, 1)):
        for length, row in zip(lengths, answers(model, method, lengths), strict=True):
            assert length not in alone or row == alone[length], (lengths, length)


@pytest.mark.parametrize("name", sorted(set(methods.available()) - LEFT_OUT))
def test_every_method_takes_the_shortest_contexts(name: str, model: CateKVModel):
    check(model, made(name, model))


@pytest.mark.parametrize("name", ["h2o", "keepkv", "atskv_rocket_kv", "snapkv"])
def test_a_budget_smaller_than_the_context(name: str, model: CateKVModel):
    try:
        method = made(name, model, budget=1)
    except UserError:
        method = made(name, model, budget=8)
    check(model, method)


def test_sequences_of_which_only_some_have_tokens_replaced(model: CateKVModel):
    small, large = (methods.create("atskv_rocket_kv", budget=budget) for budget in (1, 100))
    rows = [list(range(3, 23)), list(range(3, 18))]
    for pair in ((small, large), (large, small)):
        together_answers = model.generate_ids(
            [QUESTION] * 2, model.prefill(rows, method=together(pair)), 3, []
        ).rows
        for row, method, got in zip(rows, pair, together_answers, strict=True):
            context = model.prefill(row, method=method)
            assert model.generate_ids(QUESTION, context, 3, []).tokens == got
