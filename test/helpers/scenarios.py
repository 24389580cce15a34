"""What tests feed to models, and how they compare what comes back."""

from __future__ import annotations

import functools
from typing import Any

import torch
from tiny_models import VOCABULARY, tiny_model
from torch import Tensor

from catekv.models.compat import set_attention
from catekv.prefill import layerwise

PROMPT, STEPS, TURN = 60, 4, 9


@functools.lru_cache(maxsize=2)
def shared_model(family: str) -> Any:
    return tiny_model(family)


def with_attention(family: str, name: str) -> Any:
    model = shared_model(family)
    set_attention(model, name)
    return model


def random_ids(*shape: int, seed: int) -> Tensor:
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def left_padding(batch: int, width: int) -> Tensor:
    """Mask of a batch whose row ``i`` begins with ``5 i`` padding columns."""
    mask = torch.ones(batch, width, dtype=torch.long)
    for row in range(batch):
        mask[row, : 5 * row] = 0
    return mask


@torch.no_grad()
def two_turns(
    model: Any,
    cache: Any,
    mask: Tensor | None = None,
    batch: int = 1,
    *,
    feed_prompt: bool = True,
) -> list[Tensor]:
    """Last logits after the prompt, decode steps, a second turn (padded too), decode steps."""
    pieces = [random_ids(batch, PROMPT, seed=0)]
    pieces += [random_ids(batch, 1, seed=i) for i in range(1, 1 + STEPS)]
    pieces += [random_ids(batch, TURN, seed=20)]
    pieces += [random_ids(batch, 1, seed=30 + i) for i in range(STEPS)]
    results = []
    seen = torch.zeros(batch, 0, dtype=torch.long)
    for index, ids in enumerate(pieces):
        options = {}
        if mask is not None:
            new = torch.ones_like(ids)
            if index == 0:
                new = mask
            elif ids.shape[1] > 1:
                new = left_padding(batch, ids.shape[1]).flip(0)[:, : ids.shape[1]]
            seen = torch.cat([seen, new], dim=1)
            positions = layerwise.positions_of(seen)[:, -ids.shape[1] :]
            options = {"attention_mask": seen, "position_ids": positions}
        if index or feed_prompt:
            output = model(ids, past_key_values=cache, use_cache=True, **options)
            results.append(output.logits[:, -1])
    return results


def largest_difference(left: list[Tensor], right: list[Tensor]) -> float:
    assert len(left) == len(right) > 0
    # an unexpectedly flat model would make any comparison pass
    assert all(float(logits.std()) > 0.1 for logits in right)
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))
