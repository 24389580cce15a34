"""Which heads matter by KVzip: a head is worth as much as its best token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from catekv.calibration.kvzip.repeated import repeated
from catekv.errors import UserError
from catekv.methods.formulas.repeat import Repeat
from catekv.methods.head_mask import HeadMask

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


def released_mask(mask: HeadMask, share: float, tokens: int = 2**20) -> HeadMask:
    """A mask of KVzip's scores as the released code counts: the share is one of the entries of a
    text of so many tokens, and the last one does not fit. One head fewer, as a rule."""
    assert mask.order is not None
    layers, heads = mask.adaptive.shape
    count = max(0, int(layers * heads * tokens * share) - 1) // tokens
    return HeadMask.from_order(mask.order, count, layers, heads, mask.meta)
