"""Decoding several methods' contexts of one prompt together gives what each gives alone."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from catekv import CateKVModel, HeadMask, methods
from catekv.decode.context import stack
from catekv.errors import UserError


@pytest.fixture(scope="module")
def model() -> CateKVModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=8,
        initializer_range=0.5,
    )
    return CateKVModel(LlamaForCausalLM(config))


def test_each_row_of_a_stack_answers_as_its_own_context(model: CateKVModel) -> None:
    mask = HeadMask.random((3, 4), 0.4, seed=1)
    chosen = [
        methods.create("full"),
        methods.create("catekv", head_mask=mask, budget=64, init_tokens=8, recent_tokens=16),
        methods.create("snapkv", budget=40, window=16),
        methods.create("streaming_llm", budget=50),
    ]
    ids = torch.randint(0, 97, (300,), generator=torch.Generator().manual_seed(3)).tolist()
    prompt = model.observe(ids, window=64)
    contexts = [prompt.compress(method) for method in chosen]
    question = [5, 7, 11, 13]
    alone = [model.generate_ids(question, context, 12, []).tokens for context in contexts]
    joint = stack(contexts)
    assert [rows.tolist() for rows in joint.lengths()] == [
        [context.lengths()[layer][0].tolist() for context in contexts] for layer in range(3)
    ]
    together = model.generate_ids([question] * len(contexts), joint, 12, [])
    assert together.rows == alone
    assert len({tuple(row) for row in alone}) > 1, "the methods must differ for this to tell"


def test_contexts_of_different_prompts_are_refused(model: CateKVModel) -> None:
    contexts = [model.prefill(ids, method="full") for ids in ([1, 2, 3], [1, 2, 4])]
    with pytest.raises(UserError, match="one and the same prompt"):
        stack(contexts)
