"""Which heads matter by KVzip: a head is worth as much as its best token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from catekv.calibration.kvzip.repeated import repeated
from catekv.errors import UserError
from catekv.methods.formulas.repeat import Repeat
from catekv.methods.head_mask import HeadMask
from catekv.methods.head_votes import adaptive_count

if TYPE_CHECKING:
    from catekv.model import CateKVModel


def best_tokens(scores: Tensor) -> Tensor:
    """Scores [..., tokens] to the best of each row that was scored (not infinite)."""
    return scores.masked_fill(scores.isinf(), 0).amax(dim=-1)


def score_heads(
    model: CateKVModel,
    texts: Sequence[Sequence[int]],
    way: Repeat,
    chunk_size: int = 8192,
    progress: Callable[[str], None] = lambda text: None,
) -> Tensor:
    """Scores of all heads by texts of token ids: float32 [texts, layers, kv_heads].

    Raises:
        UserError: no texts, or layers that are not compressed.
    """
    if not texts:
        raise UserError("heads are scored by texts; give at least one")
    found = []
    for ids in texts:
        layers = repeated(model, ids, way, chunk_size)
        found.append(torch.stack([best_tokens(one.repeat_scores[way][0]).cpu() for one in layers]))
        progress("texts")
    return torch.stack(found)


def mask_of(
    scores: Tensor, share: float, strict_tokens: int | None = None, **meta: Any
) -> HeadMask:
    """The share of all heads with the best scores [texts, layers, kv_heads] of any text.

    Args:
        strict_tokens: count as released, where the share is one of the entries of a text of so
            many tokens: one head fewer. None: exactly.
        meta: of the mask.
    """
    best = scores.amax(dim=0)
    layers, heads = best.shape
    order = best.flatten().double().sort(descending=True, stable=True).indices.tolist()
    count = adaptive_count(share, layers * heads)
    if strict_tokens is not None:
        count = max(0, int(layers * heads * strict_tokens * share) - 1) // strict_tokens
    return HeadMask.from_order(order, count, layers, heads, {"ratio": share, **meta})
