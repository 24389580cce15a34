"""Given tokens behind a compressed context: every method, batches with padding, and the distance
to the full cache, which is nothing where nothing was removed."""

from __future__ import annotations

from typing import Any

import masked_reference
import pytest
import torch
from required_options import required_options
from scenarios import random_ids
from tiny_models import LAYERS, RandomKeep, tiny_model

from catekv import CateKVModel, methods
from catekv.errors import UserError
from catekv.evaluation.fidelity.measuring import divergences
from catekv.evaluation.run.forcing import forced, log_likelihoods, reads_by_step
from catekv.methods import Method, Needs, create
from catekv.methods.head_mask import HeadMask

PROMPT = 48
SHAPE = (LAYERS, 2)
#: options with which a method keeps and reads everything, where a large budget does not say so
WHOLE: dict[str, dict[str, Any]] = {
    "full": {},
    "catekv": {"head_mask": HeadMask(torch.ones(SHAPE))},
    "duo_attention": {"pattern": [[1.0, 0.0]] * LAYERS, "sinks": 2, "recent": 999},
    "simcalkv": {"ratio": 0.0},
    "simcalkv_keepkv": {"ratio": 0.0},
    "simcalkv_cam": {"ratio": 0.0},
    "simcalkv_pyramidinfer": {"ratio": 0.0, "step": 0.0},
    "pyramidinfer_kv": {"least_ratio": 1.0, "decode": False},
    "atskv": {"budget": 999, "untrained": True, "predictor_width": 5, "feature_dim": 16,
              "lsh_bits": 2},
}  # fmt: skip
#: a store on the device reads its entries in another order than a prefix
ROUNDING = {"h2o", "cam", "keepkv", "decoding", "r_kv", "triattention"}


@pytest.fixture(scope="module")
def model() -> CateKVModel:
    return CateKVModel(tiny_model("llama", num_key_value_heads=2))


@pytest.fixture(scope="module")
def dense(model: CateKVModel) -> Any:
    made = [whole(name, model) for name in usable()]
    return model.observe(random_ids(1, PROMPT, seed=1), needs=Needs.of_all(made))


def usable() -> list[str]:
    """Methods that can be had and can keep everything: shadowkv's keys are of low rank."""
    return [name for name in methods.available() if name not in ("pyramidinfer", "shadowkv")]


def whole(name: str, model: CateKVModel) -> Method:
    """The method keeping everything."""
    options = WHOLE.get(name, {"budget": 999})
    return create(name, **{**required_options(name, model.shape), **options})


@pytest.mark.parametrize("name", usable())
def test_a_method_that_keeps_everything_says_what_the_full_cache_says(
    model: CateKVModel, dense: Any, name: str
) -> None:
    target = random_ids(1, 6, seed=2).tolist()
    context = dense.compress(whole(name, model))
    singly = reads_by_step(context)
    (full,) = forced(model, dense.compress(create("full")), target, singly=singly)
    (found,) = forced(model, context, target, singly=singly)
    distance = divergences(full, found)
    assert distance.shape == (6,)
    assert float(distance.abs().max()) <= (1e-10 if name in ROUNDING else 0.0)


@pytest.mark.parametrize(
    "method", [RandomKeep(0.5), create("h2o", budget=12), create("quest", budget=12, page=4)]
)
def test_a_padded_batch_says_what_each_sequence_says_alone(model: CateKVModel, method: Any) -> None:
    contexts = [random_ids(1, tokens, seed=tokens)[0].tolist() for tokens in (40, 33, 40)]
    # what Quest reads for a whole question depends on padding within the question
    questions = [[5], [8], [6]] if method.name == "quest" else [[5, 6, 7], [8], []]
    targets = [[9, 10, 11, 12], [13, 14], [15, 16, 17]]
    context = model.prefill(contexts, method=method)
    together = forced(model, context, targets, questions, following=True)
    for place, found in enumerate(together):
        alone = model.prefill(contexts[place], method=method)
        (single,) = forced(model, alone, [targets[place]], [questions[place]], following=True)
        assert found.shape == single.shape == (len(targets[place]) + 1, single.shape[1])
        assert torch.allclose(found, single, atol=2e-5)


def test_tokens_one_by_one_say_what_they_say_at_once(model: CateKVModel) -> None:
    context = model.prefill(random_ids(1, PROMPT, seed=3), method=RandomKeep(0.5))
    target = random_ids(1, 5, seed=4).tolist()
    (at_once,) = forced(model, context, target, [[7, 8]])
    (singly,) = forced(model, context, target, [[7, 8]], singly=True)
    assert torch.allclose(at_once, singly, atol=1e-5)
    assert context.tokens == PROMPT  # not consumed


def test_the_distance_is_that_of_stock_transformers_with_the_same_mask(model: CateKVModel) -> None:
    """Full and masked predictions from an ordinary cache, KL from its formula."""
    ids, target, method = random_ids(1, PROMPT, seed=5), random_ids(1, 6, seed=6), RandomKeep(0.5)
    dense = model.observe(ids, needs=method.needs)
    (full,) = forced(model, dense.compress(create("full")), target.tolist())
    (found,) = forced(model, dense.compress(method), target.tolist())
    masked_reference.register()
    masked_reference.KEEP.clear()
    stock = tiny_model("llama", masked_reference.NAME, num_key_value_heads=2)
    try:
        right = []
        for masked in (False, True):
            with torch.no_grad():
                first = stock(ids, use_cache=True)
                if masked:
                    masked_reference.decide(method, first.past_key_values, None, LAYERS)
                    assert masked_reference.KEEP
                rest = stock(target[:, :-1], past_key_values=first.past_key_values)
            logits = torch.cat([first.logits[:, -1:], rest.logits], dim=1)[0].double()
            right.append(logits.softmax(dim=-1))
            masked_reference.KEEP.clear()
    finally:
        masked_reference.KEEP.clear()
    expected = (right[0] * (right[0].log() - right[1].log())).sum(dim=-1)
    assert float(expected.max()) > 1e-3, "the mask changed nothing"
    assert torch.allclose(divergences(full, found), expected, atol=1e-5, rtol=1e-4)
    picked = right[1].gather(-1, target[0][:, None])[:, 0].log()
    assert torch.allclose(log_likelihoods(found, target[0].tolist()).double(), picked, atol=1e-5)


def test_one_continuation_per_sequence(model: CateKVModel) -> None:
    context = model.prefill(random_ids(1, 20, seed=7), method=create("full"))
    with pytest.raises(UserError, match="2 continuations and 1 questions for a context of 1"):
        forced(model, context, [[1], [2]])
