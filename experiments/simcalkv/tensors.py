"""Queries, keys and values of a prompt and of the tokens that a model answers to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from catekv import methods
from catekv.errors import UserError
from catekv.methods import Needs

if TYPE_CHECKING:
    from catekv.model import CateKVModel


@dataclass(frozen=True, eq=False)
class LayerTensors:
    """One layer of one sequence, after rotation and norms.

    ``queries`` [query_heads, tokens, head_dim], ``keys`` and ``values`` [kv_heads, tokens,
    head_dim]; ``scaling`` is the factor of the logits.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    scaling: float

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.queries.shape[0] // self.keys.shape[0]


@dataclass(frozen=True)
class Recorded:
    """A prompt of ``prompt_tokens`` tokens and, behind it, what the model answered.

    ``layers`` by index; layers that no method compresses (sliding windows, linear attention) are
    left out.
    """

    prompt_tokens: int
    layers: dict[int, LayerTensors]

    @property
    def tokens(self) -> int:
        return next(iter(self.layers.values())).keys.shape[1]


@torch.no_grad()
def record(model: CateKVModel, prompt: Sequence[int], new_tokens: int) -> Recorded:
    """Answer greedily with full attention for exactly ``new_tokens`` tokens (an end token does not
    end it), and read prompt and answer once more for the tensors of all positions.

    What is recorded is what decoding saw: attention is causal.

    Raises:
        UserError: prompt and answer exceed the model's window, or no layer can be compressed.
    """
    ids = list(prompt)
    if new_tokens:
        context = model.prefill(ids, method=methods.create("full"))
        ids += model.generate_ids([], context, new_tokens, []).tokens
    dense = model.observe(ids, needs=Needs(window=len(ids)))
    layers = {}
    for index in range(model.shape.layers):
        try:
            seen = dense.observed(index)
        except UserError:
            continue  # a layer that is not compressed
        scaling = seen.plain_scaling("the analysis of attention tensors")
        layers[index] = LayerTensors(seen.queries[0], seen.keys[0], seen.values[0], scaling)
    if not layers:
        raise UserError(
            "this model has no layer with full attention, and only those are compressed"
        )
    return Recorded(len(prompt), layers)
