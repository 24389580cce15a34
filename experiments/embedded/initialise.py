"""Structured starting weights: the means to retrieve, not the result.

Induction emerges too late from random weights on two CPU cores. What is set here, all of it free
to change in training:

* one embedding dimension is constant, with the opposite sign for BOS (an attention sink);
* in layer 0 some heads look one to six tokens back and copy those tokens' codes into dimensions
  of the residual stream kept for them;
* in layer 1 two key-value heads match the current token with keys whose *previous* token is the
  same, in layer 2 two match the last two tokens; they copy the found token to the output code.

Everything else is random. No head is made consistent or adaptive in a compression method's sense,
none is frozen, and nothing was chosen by looking at compression.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from catekv.tasks.wording import vocabulary

_CONSTANT = 4.0
_LOOK_BACK_SHARPNESS = 20.0
_MATCH_SHARPNESS = 5.0
_SINK = 6.0


def initialise(weights: dict[str, Tensor], config: Any, seed: int) -> None:
    """Fill ``weights`` (a stock Llama's parameters, float32) in place."""
    draw = _Draw(seed)
    _fill_randomly(weights, draw)
    stream = _Stream(config)
    to_output = _write_codes(weights, stream, draw)
    to_earlier = draw.orthogonal(stream.dim, stream.width)
    _look_back(weights, stream, config, to_earlier)
    for layer in (1, 2):
        _match_and_copy(weights, layer, stream, config, (to_earlier, to_output), draw)


class _Draw:
    """Random matrices, one after another from one seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def orthogonal(self, rows: int, columns: int) -> Tensor:
        """Random orthonormal rows (``rows <= columns``)."""
        return torch.linalg.qr(self.normal(columns, rows))[0].T.contiguous()


class _Stream:
    """Layout of the residual stream: token code, codes of earlier tokens, output code, constant."""

    def __init__(self, config: Any) -> None:
        self.hidden, self.dim = config.hidden_size, config.head_dim
        self.width = self.hidden * 5 // 16
        self.earlier = [self.dim] * 2 + [self.dim // 2] * 4
        starts = [self.width]
        for size in self.earlier:
            starts.append(starts[-1] + size)
        self.starts = starts
        self.constant = self.hidden - 1
        self.output = torch.arange(starts[-1], self.hidden - 1)[: 2 * self.dim]
        assert len(self.output) >= self.dim, "the hidden size is too small for these weights"
        # rotary pairs from the fastest to the slowest
        pairs = torch.arange(self.dim // 2) / (self.dim // 2)
        self.frequency = float(config.rope_parameters["rope_theta"]) ** (-pairs)
        #: what a norm divides by, as codes and the constant are there
        self.norm = math.sqrt((self.width + _CONSTANT**2) / self.hidden)
        self.constant_scale = _CONSTANT / self.norm

    def head(self, index: int) -> slice:
        """Rows of a head in a projection."""
        return slice(index * self.dim, (index + 1) * self.dim)


def _fill_randomly(weights: dict[str, Tensor], draw: _Draw) -> None:
    for name, weight in weights.items():
        if name.endswith("norm.weight"):
            weight.fill_(1.0)
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.copy_(draw.normal(*weight.shape) * 0.2 / math.sqrt(weight.shape[1]))
        else:
            weight.copy_(draw.normal(*weight.shape) * 0.5 / math.sqrt(weight.shape[1]))


def _write_codes(weights: dict[str, Tensor], stream: _Stream, draw: _Draw) -> Tensor:
    """Embedding and head: every token's code; returns the codes' way to the output
    [output, width]."""
    embedding = weights["model.embed_tokens.weight"]
    embedding.copy_(draw.normal(*embedding.shape) * 0.02)
    code = draw.normal(embedding.shape[0], stream.width)
    code *= math.sqrt(stream.width) / code.norm(dim=1, keepdim=True)
    embedding[:, : stream.width] = code
    embedding[:, stream.constant] = _CONSTANT
    embedding[vocabulary.BEGIN, stream.constant] = -_CONSTANT
    to_output = draw.orthogonal(len(stream.output), stream.width)
    head = weights["lm_head.weight"]
    head.copy_(draw.normal(*head.shape) * 0.02)
    head[:, stream.output] = 0.25 * code @ to_output.T
    return to_output


def _projections(
    weights: dict[str, Tensor], layer: int, stream: _Stream, query_head: int, kv_head: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Parts of the query, key, value and output projections that belong to a head, emptied but
    for the value's."""
    attention = f"model.layers.{layer}.self_attn."
    query = weights[attention + "q_proj.weight"][stream.head(query_head)]
    key = weights[attention + "k_proj.weight"][stream.head(kv_head)]
    value = weights[attention + "v_proj.weight"][stream.head(kv_head)]
    out = weights[attention + "o_proj.weight"][:, stream.head(query_head)]
    for part in (query, key, value, out):
        part.zero_()
    return query, key, value, out


def _look_back(
    weights: dict[str, Tensor], stream: _Stream, config: Any, token_to_earlier: Tensor
) -> None:
    """Layer 0: the fastest rotary pairs turn by a known angle per token."""
    group = config.num_attention_heads // config.num_key_value_heads
    half, dim, constant = stream.dim // 2, stream.dim, stream.constant
    strength = math.sqrt(_LOOK_BACK_SHARPNESS * math.sqrt(dim)) / stream.constant_scale
    for query_head, size in enumerate(stream.earlier):
        back = query_head + 1
        query, key, value, out = _projections(weights, 0, stream, query_head, query_head // group)
        for pair in range(3):
            angle = -float(stream.frequency[pair]) * back
            query[pair, constant] = strength * math.cos(angle)
            query[pair + half, constant] = strength * math.sin(angle)
            key[pair, constant] = strength
        value[:, : stream.width] = token_to_earlier
        start = stream.starts[query_head]
        out[start : start + size] = stream.norm * torch.eye(dim)[:size]


def _match_and_copy(
    weights: dict[str, Tensor],
    layer: int,
    stream: _Stream,
    config: Any,
    ways: tuple[Tensor, Tensor],
    draw: _Draw,
) -> None:
    """Layers 1 and 2, in rotary pairs that hardly turn; ``ways`` of a token's code to the codes of
    earlier tokens and to the output."""
    to_earlier, to_output = ways
    group = config.num_attention_heads // config.num_key_value_heads
    half, dim, constant = stream.dim // 2, stream.dim, stream.constant
    turns = stream.frequency * config.max_position_embeddings
    slow = [pair for pair in range(half) if turns[pair] < 0.5]
    places = torch.tensor([*slow, *(pair + half for pair in slow)])
    sink, places = int(places[-1]), places[:-1]
    previous, second = (slice(start, start + dim) for start in stream.starts[:2])
    scale = math.sqrt(_MATCH_SHARPNESS)
    for kv_head in (0, 1):
        query, key, value, out = _projections(weights, layer, stream, kv_head * group, kv_head)
        first_code = draw.orthogonal(len(places), dim)
        second_code = draw.orthogonal(len(places), dim)
        query[places, : stream.width] = scale * first_code @ to_earlier
        key[places, previous] = scale * first_code
        if layer == 2:
            query[places, previous] = scale * second_code
            key[places, second] = scale * second_code
        query[sink, constant] = _SINK / stream.constant_scale
        key[sink, constant] = -_SINK / stream.constant_scale
        part = to_output[kv_head * dim : (kv_head + 1) * dim]
        value[: len(part), : stream.width] = part
        target = stream.output[kv_head * dim : kv_head * dim + len(part)]
        out[target, torch.arange(len(part))] = 1.0
