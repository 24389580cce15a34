"""Every causal decoder of transformers: as the stock model, or refused with the reason."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import transformers
from decoder_walk import walk
from models_page import PAGE, REFUSED, row
from scenarios import random_ids
from small_decoders import decoder_names, small_decoder
from tiny_models import KeepEverything
from torch import nn

from catekv.cache.continuation import feed
from catekv.errors import UserError
from catekv.model import CateKVModel
from catekv.models.compat import cache_argument

#: one of each kind of attention, cache and refusal; all of them run in the slow suite
QUICK = (
    "bloom", "deepseek_v32", "falcon_h1", "gemma2", "gemma3", "gemma3n_text", "gemma4_text",
    "glm4", "gpt2", "gpt_oss", "granitemoehybrid", "jetmoe", "lfm2", "llama", "llama4", "minicpm3",
    "openai-gpt", "qwen3_next", "roberta", "zamba2",
)  # fmt: skip
_SIX = {
    "num_hidden_layers": 6,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "global_head_dim": 16,
}
GEMMA4: dict[str, dict[str, Any]] = {
    "shared keys": {**_SIX, "num_kv_shared_layers": 2},
    "keys as values": {**_SIX, "attention_k_eq_v": True, "num_global_key_value_heads": 2},
    "experts": {
        **_SIX, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2,
        "moe_intermediate_size": 32,
    },
}  # fmt: skip

pytestmark = pytest.mark.filterwarnings("error::FutureWarning", "ignore:.*:UserWarning")


def recorded() -> dict[str, str]:
    """The rows of the page by name."""
    text = PAGE.read_text(encoding="utf-8")
    return {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}


def of_this_release() -> bool:
    """Whether the page was written with the release of transformers that is installed."""
    return f"transformers {transformers.__version__} " in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in decoder_names()
    ],
)
def test_a_decoder_is_as_its_stock_model_or_refused(name: str):
    """The row is made of nothing but answers that equal the stock model's and of refusals."""
    found = row(name, walk(name))
    if of_this_release():
        assert recorded()[name] == found


def test_the_page_has_every_kind():
    names = recorded()
    assert len(names) >= 60
    if of_this_release():
        assert sorted(names) == decoder_names()


def test_no_refusal_is_a_traceback_or_of_several_sentences():
    refused = PAGE.read_text(encoding="utf-8").split(REFUSED)[1].split("\n## ")[0]
    for line in refused.splitlines():
        assert not re.search(r"Traceback|0x[0-9a-f]{6}|/site-packages/", line)


@pytest.mark.parametrize("kind", GEMMA4)
def test_gemma4_of_every_build(kind: str):
    found = walk("gemma4_text", **GEMMA4[kind])
    assert (found.reason, found.off, found.same_tokens) == (None, 0.0, True)
    assert found.compressed == (2 if kind == "shared keys" else 3)
    assert found.share < 0.5


def test_layers_that_share_keys_compute_the_last_tokens_causally():
    """They are given the last queries alone, without a mask."""
    model = small_decoder("gemma4_text", **GEMMA4["shared keys"])
    ids = random_ids(1, 20, seed=2)
    with torch.no_grad():
        right = model(ids).logits[:, -4:]
    wrapped = CateKVModel(model, KeepEverything())
    with torch.no_grad():
        assert torch.equal(wrapped.model(ids, use_cache=False).logits[:, -4:], right)
        some = wrapped.model(ids, use_cache=False, logits_to_keep=4).logits
    assert float((some - right).abs().max()) < 1e-5
    context = wrapped.prefill(ids[:, :16], chunk_size=5)
    found = feed(wrapped.model, ids[:, 16:], context.cache, last=4)
    assert float((found - right).abs().max()) < 1e-5


def test_positions_that_do_not_begin_at_zero_are_refused():
    with pytest.raises(UserError, match="does not number its tokens from zero"):
        CateKVModel(small_decoder("xlm-roberta"))


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_cache_goes_by_the_name_that_the_model_has(name: str):
    class Old(nn.Module):
        def forward(self, ids: Any, past_key_values: Any = None) -> None: ...

    class New(nn.Module):
        def forward(self, ids: Any, cache: Any = None) -> None: ...

    model = New() if name == "cache" else Old()
    assert cache_argument(model, 3) == {name: 3}
    assert cache_argument(torch.compile(model), 3) == {name: 3}
