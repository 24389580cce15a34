"""A chunk's attention to its past: exact in any blocks, and without masks of queries by keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor

from catekv.cache import attention
from catekv.cache.attention import DeferredMask, deferred_masks
from catekv.kernels.ragged_decode import causal_tail_mask

BATCH, HEADS, DIM = 2, 6, 8


def tensors(kv_heads: int, queries: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(queries + tokens)
    extents = ((HEADS, queries), (kv_heads, tokens), (kv_heads, tokens))
    return tuple(  # type: ignore[return-value]
        torch.randn(BATCH, heads, count, DIM, generator=generator) for heads, count in extents
    )


def expected(query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None = None) -> Tensor:
    """Plain softmax over every key that a query sees, [batch, queries, heads, dim]."""
    group = HEADS // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    seen = causal_tail_mask(query.shape[2], key.shape[2], query.device)
    if valid is not None:
        seen = seen & valid[:, None, None]
    logits = (query @ key.transpose(-1, -2) * 0.3).masked_fill(~seen, -torch.inf)
    return (logits.softmax(dim=-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("mask_bytes", [1, 4 * 6 * 50 * 3, 1 << 20])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize(("queries", "tokens"), [(2, 3), (7, 50), (20, 20)])
def test_any_blocks_give_the_same(
    queries: int, tokens: int, kv_heads: int, mask_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "MASK_BYTES", mask_bytes)
    query, key, value = tensors(kv_heads, queries, tokens)
    actual = attention._past_and_self(query, key, value, 0.3)
    assert torch.allclose(actual, expected(query, key, value), atol=1e-6)


@pytest.mark.parametrize("padding", [[0, 3], [5, 45], [44, 49], [0, 0]])
def test_padded_sequences_are_attended_to_without_their_padding(padding: list[int]) -> None:
    query, key, value = tensors(2, 7, 50)
    valid = torch.arange(50) >= torch.tensor(padding)[:, None]
    actual = attention._past_and_self(query, key, value, 0.3, valid)
    wanted = expected(query, key, value, valid)
    own = valid[:, -7:]
    assert torch.allclose(actual[own], wanted[own], atol=1e-6)
    assert not actual[~own].any()


def requested(padding: Tensor | None = None, **options: Any) -> DeferredMask:
    """What a model's mask function gets when a prompt of 40 tokens begins."""
    attention.register_attention()
    batch = 1 if padding is None else len(padding)
    arguments = {"batch_size": batch, "q_length": 40, "kv_length": 40}
    arguments.update(q_offset=0, kv_offset=0)
    with deferred_masks():
        found = attention._mask("sdpa")(**arguments, attention_mask=padding, **options)
    assert isinstance(found, DeferredMask)
    return found


def sliding(window: int) -> dict[str, Any]:
    from transformers.masking_utils import sliding_window_causal_mask_function

    return {"mask_function": sliding_window_causal_mask_function(window), "local_size": window}


def test_plain_causal_chunks_need_no_mask() -> None:
    assert requested().build(8, 16, 24, 0, ragged=True) is None
    assert requested(torch.ones(1, 40).bool()).build(8, 16, 24, 0, ragged=True) is None


def test_a_window_needs_a_mask_only_where_it_hides_something() -> None:
    mask = requested(**sliding(24))
    assert mask.build(8, 16, 24, 0, ragged=True) is None
    hidden = mask.build(8, 17, 25, 0, ragged=True)
    assert hidden is not None
    assert hidden.shape == (1, 1, 8, 25)
    assert hidden[0, 0, -1].tolist() == [False] + 24 * [True]


def test_left_padding_is_named_by_columns_and_anything_else_by_a_mask() -> None:
    padding = torch.ones(2, 40).bool()
    padding[1, :9] = False
    columns = requested(padding).build(8, 16, 24, 0, ragged=True)
    assert columns is not None
    assert torch.equal(columns, padding[:, :24])
    holes = padding.clone()
    holes[0, 20] = False
    mask = requested(holes).build(8, 16, 24, 0, ragged=True)
    assert mask is not None
    assert mask.shape == (2, 1, 8, 24)
    assert not mask[0, 0, :, 20].any()
    # layers that keep a window of their own ask for the mask of a chunk
    assert requested(padding).build(8, 16, 24, 0, ragged=False).shape == (2, 1, 8, 24)


def test_a_model_with_a_long_window_makes_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phi-3 has a window longer than its context: its chunks must not pay for it."""
    from catekv import methods
    from catekv.cache.cache import RaggedCache
    from catekv.prefill import layerwise

    model = tiny_model("phi3", sliding_window=4096)
    built: list[Tensor | None] = []
    original = DeferredMask.build

    def noted(self: DeferredMask, *arguments: Any) -> Tensor | None:
        built.append(original(self, *arguments))
        return built[-1]

    monkeypatch.setattr(DeferredMask, "build", noted)
    cache = RaggedCache(model.config, methods.create("full"), 100)
    layerwise.prefill(model, torch.arange(100)[None] % 90, cache, None, 32)
    assert built
    assert all(mask is None for mask in built)
