"""Contexts of one to three tokens, alone and as rows of a batch, with every method."""

from __future__ import annotations

from typing import Any

import pytest
from required_options import required_options
from tiny_models import tiny_model

from catekv import methods
from catekv.methods.per_sequence import together
from catekv.model import CateKVModel

#: cannot be made without a file, or not used with a cache at all
LEFT_OUT = {"pyramidinfer", "duo_attention"}
QUESTION = [5, 6]


@pytest.fixture(scope="module")
def model() -> CateKVModel:
    return CateKVModel(tiny_model("llama"), None)


def made(name: str, model: CateKVModel, **options: Any) -> methods.Method:
    return methods.create(name, **{**required_options(name, model.shape), **options})


def answers(model: CateKVModel, method: methods.Method, *asked: tuple[int, int]) -> list[Any]:
    """Answers of a batch of contexts of so many tokens with so much of the question each."""
    rows = [list(range(3, 3 + length)) for length, _ in asked]
    context = model.prefill(rows, method=method)
    return model.generate_ids([QUESTION[:tokens] for _, tokens in asked], context, 3, []).rows


def check(model: CateKVModel, method: methods.Method) -> None:
    alone = {
        case: answers(model, method, case)[0] for case in ((1, 2), (2, 2), (3, 2), (1, 0), (40, 2))
    }
    # rows without a question are answered apart from the others
    for batch in (
        ((1, 2), (40, 2)), ((40, 2), (2, 2), (1, 2)), ((3, 2), (1, 0)), ((1, 2), (1, 2)),
        ((40, 2), (1, 0)),
    ):  # fmt: skip
        assert answers(model, method, *batch) == [alone[case] for case in batch], batch


@pytest.mark.parametrize("name", sorted(set(methods.available()) - LEFT_OUT))
def test_every_method_takes_the_shortest_contexts(name: str, model: CateKVModel):
    check(model, made(name, model))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("h2o", {"budget": 1}),
        ("keepkv", {"budget": 8}),
        ("atskv_rocket_kv", {"budget": 1}),
        ("snapkv", {"budget": 1}),
        ("decoding", {"budget": 2, "every": 1}),
        ("r_kv", {"budget": 8, "every": 2}),
        ("quest", {"budget": 2, "page": 2, "full_layers": 0}),
        ("rocketkv", {"budget": 2, "window": 1}),
        ("atskv", {"untrained": True}),
        ("shadowkv", {"budget": 8, "local": 1, "outliers": 1, "rank": 2}),
    ],
)
def test_a_budget_smaller_than_the_context(name: str, options: dict[str, Any], model: CateKVModel):
    check(model, made(name, model, **options))


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
