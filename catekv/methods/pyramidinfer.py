"""PyramidInfer (Yang et al., 2024): layer after layer keeps less of what the one before kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from catekv.errors import NeedsAllHeadsError, UserError
from catekv.methods.base import Method, Needs, Observed, Selection
from catekv.methods.formulas.scoring import top_mask
from catekv.methods.h2o import observed_shape
from catekv.methods.options import check_number, check_whole
from catekv.methods.registry import register
from catekv.models.shape import ModelShape

if TYPE_CHECKING:
    from catekv.kernels.ragged import RaggedPrefix

    pass

#: Upper bound on the bytes of one block of attention weights.
BLOCK_BYTES = 64 * 2**20
_GUARD = 1e-9


def keep_ratios(layers: int, least: float = 0.9) -> list[float]:
    """Share of its context that each layer hands on: a cosine from 1 towards ``least``."""
    return [
        least + (1 - least) * (math.cos(math.pi * layer / layers) + 1) / 2
        for layer in range(layers)
    ]


def recent_tokens(tokens: int, ratio: float = 0.2) -> int:
    """Tokens at the end of the prompt that all layers keep: ``1 + floor(ratio * tokens)``."""
    return min(tokens, 1 + math.floor(ratio * tokens + _GUARD))


def context_sizes(
    tokens: int, layers: int, least: float = 0.9, recent: float = 0.2, min_context: int = 64
) -> list[int]:
    """Context tokens, the recent ones left out, that each layer stores and, last, what the last one
    would hand on: ``layers + 1`` numbers.

    A selection that would leave ``min_context`` tokens or fewer is skipped.
    """
    sizes = [tokens - recent_tokens(tokens, recent)]
    for ratio in keep_ratios(layers, least):
        kept = math.floor(sizes[-1] * ratio + _GUARD)
        sizes.append(kept if kept > min_context else sizes[-1])
    return sizes


def decode_ratios(layers: int, least: float = 0.1) -> list[float]:
    """What the decode-time share of each layer is multiplied by: a cosine from 1 to ``least``."""
    return keep_ratios(layers, least)


def decode_block_keep(
    layer: int, layers: int, block: int = 16, share: float = 0.9, least: float = 0.1
) -> int:
    """Tokens that a layer keeps of every ``block`` that leave the recent window while decoding."""
    return max(1, math.floor(block * share * decode_ratios(layers, least)[layer] + _GUARD))


def query_weights(count: int) -> Tensor:
    """Weights of recent queries, from 1.0 for the oldest to 1.2 for the newest."""
    return torch.linspace(1.0, 1.2, count)


def context_scores(queries: Tensor, keys: Tensor, positions: Tensor, tokens: int) -> Tensor:
    """Attention that entries received from the last prompt queries: float32 [entries].

    Softmax over the given entries only, mean over all heads, weighted mean over the queries.

    Args:
        queries: [query_heads, count, head_dim], scaled: the last ``count`` of ``tokens`` queries.
        keys: [kv_heads, entries, head_dim]; positions: int64 [entries] in the prompt.
    """
    heads, count, _ = queries.shape
    group = heads // keys.shape[0]
    scores = torch.zeros(keys.shape[1], device=keys.device)
    weights = query_weights(count).to(keys.device) / count / heads
    asked = torch.arange(tokens - count, tokens, device=keys.device)
    step = max(1, BLOCK_BYTES // (4 * keys.shape[1]))
    for head in range(heads):
        own = keys[head // group].float().T
        for part in torch.arange(count, device=keys.device).split(step):
            logits = queries[head, part].float() @ own
            logits.masked_fill_(positions > asked[part, None], -torch.inf)
            scores += weights[part] @ logits.softmax(dim=-1)
    return scores


@register
@dataclass(frozen=True)
class PyramidInferKV(Method):
    """PyramidInfer's choice of keys and values, with hidden states of full length.

    The first layer keeps all tokens. From what a layer keeps it hands a share on to the next one:
    the last ``1 + floor(recent * tokens)`` tokens, the first ``sinks`` ones, and those with most
    attention from the recent queries (mean over all heads, newer queries weigh more, up to 1.2). So
    sets shrink from layer to layer and are the same for all heads of a layer.

    While decoding the recent window keeps its size. Of every ``block`` tokens that have left it, a
    layer keeps those with most attention from the recent queries; fewer in deeper layers.

    In the published system dropped tokens leave the hidden states of deeper layers too.

    Args:
        least_ratio: share that the last layers hand on; the first one hands on everything.
        recent: share of the prompt that is recent.
        sinks: first tokens that are always handed on.
        min_context: a selection that leaves so few context tokens, or fewer, is skipped.
        window: at most so many of the recent queries score (the published system: all of them).
        decode: go on choosing while decoding (as published); False: new tokens are appended.
        block: tokens that a choice while decoding is made among.
        block_share: share of a block that the first layer keeps.
        least_block_ratio: what that share is multiplied by in the last layers; at least one token
            of a block stays.
    """

    name: ClassVar[str] = "pyramidinfer_kv"
    paper: ClassVar[str] = (
        "PyramidInfer: Pyramid KV Cache Compression for High-throughput LLM Inference, 2024"
    )

    least_ratio: float = 0.9
    recent: float = 0.2
    sinks: int = 4
    min_context: int = 64
    window: int = 512
    decode: bool = True
    block: int = 16
    block_share: float = 0.9
    least_block_ratio: float = 0.1

    def __post_init__(self) -> None:
        for option in ("least_ratio", "recent", "block_share", "least_block_ratio"):
            check_number(self.name, option, getattr(self, option))
            if not 0 <= getattr(self, option) <= 1:
                raise UserError(f"{self.name}: {option} {getattr(self, option)} is outside [0, 1]")
        for option, least in (("sinks", 0), ("min_context", 0), ("window", 1), ("block", 1)):
            check_whole(self.name, option, getattr(self, option), least)
        if self.min_context < self.sinks:
            raise UserError(
                f"{self.name}: min_context {self.min_context} does not hold the {self.sinks} sinks"
            )

    @property
    def needs(self) -> Needs:
        return Needs(window=self.window, all_layers=True)

    def _sizes(self, tokens: int, layers: int) -> list[int]:
        return context_sizes(tokens, layers, self.least_ratio, self.recent, self.min_context)

    def budget_table(self, tokens: int, shape: ModelShape) -> Tensor:
        recent = recent_tokens(tokens, self.recent)
        sizes = self._sizes(tokens, shape.layers)[: shape.layers]
        return torch.tensor([[size + recent] * shape.kv_heads for size in sizes])

    def for_heads(self, heads: slice) -> Method:
        raise NeedsAllHeadsError(
            f"{self.name} averages over all heads of a layer, which no process of a "
            "tensor-parallel group has; use one process"
        )

    def select_observed(self, observed: Observed) -> Selection:
        """One layer alone keeps as many tokens as it would among all, by its own attention."""
        kept = int(self.budget_table(observed.tokens, observed_shape(observed))[observed.layer, 0])
        chosen = [
            self._next(observed, b, torch.arange(observed.tokens), kept)
            for b in range(observed.keys.shape[0])
        ]
        return _selection(observed, chosen)

    def select_layers(self, observed: Sequence[Observed]) -> list[Selection]:
        first = observed[0]
        batch, tokens = first.keys.shape[0], first.tokens
        recent = recent_tokens(tokens, self.recent)
        sizes = self._sizes(tokens, len(observed))
        chosen = [torch.arange(tokens) for _ in range(batch)]
        selections = []
        for index, layer in enumerate(observed):
            selections.append(_selection(layer, chosen))
            if index + 1 < len(observed):
                kept = sizes[index + 1] + recent
                chosen = [self._next(layer, b, chosen[b], kept) for b in range(batch)]
        return selections

    def decode_store(
        self,
        prefix: RaggedPrefix,
        observed: Observed,
        valid: Tensor | None,
        selection: Selection,
    ) -> BlockStore | None:
        pass

        if not self.decode:
            return None
        assert selection.keep is not None
        keep = decode_block_keep(
            observed.layer,
            observed.num_layers,
            self.block,
            self.block_share,
            self.least_block_ratio,
        )
        sequences = []
        for b in range(observed.keys.shape[0]):
            kept = selection.keep[b, 0]
            seen = observed.tokens
            if valid is not None:
                kept, seen = kept[valid[b]], int(valid[b].sum())
            recent = recent_tokens(seen, self.recent)
            asked = min(recent, self.window, observed.queries.shape[2])
            queries = observed.queries[b, :, observed.queries.shape[2] - asked :].clone()
            sequences.append(Sequence(kept.nonzero().squeeze(-1), queries, seen, recent))
        return BlockStore(prefix, sequences, BlockRule(self.block, keep, self.window))

    def _next(self, layer: Observed, b: int, positions: Tensor, kept: int) -> Tensor:
        """``kept`` of the ``positions`` (int64, ascending) that a layer holds."""
        if kept >= len(positions):
            return positions
        recent = recent_tokens(layer.tokens, self.recent)
        positions = positions.to(layer.keys.device)
        queries = layer.queries[b, :, max(0, layer.queries.shape[2] - recent) :]
        scores = context_scores(
            queries * layer.scaling, layer.keys[b, :, positions], positions, layer.tokens
        )
        before = len(positions) - recent
        scores[:before].masked_fill_(positions[:before] < self.sinks, torch.inf)
        stays = top_mask(scores[:before], torch.tensor(kept - recent))
        return torch.cat([positions[:before][stays], positions[before:]])


def _selection(layer: Observed, chosen: Sequence[Tensor]) -> Selection:
    keep = torch.zeros(layer.keys.shape[:3], dtype=torch.bool, device=layer.keys.device)
    for b, positions in enumerate(chosen):
        keep[b][:, positions.to(keep.device)] = True
    return Selection(keep)


@register
@dataclass(frozen=True)
class PyramidInfer(PyramidInferKV):
    """Refused: dropped tokens would have to leave the hidden states of deeper layers, which the
    public interfaces of transformers do not allow. ``pyramidinfer_kv`` makes the same choice of
    keys and values."""

    name: ClassVar[str] = "pyramidinfer"

    def __post_init__(self) -> None:
        super().__post_init__()
        raise UserError(
            "pyramidinfer removes tokens from the hidden states between layers, which a cache "
            "cannot do: transformers hands every layer the same positions and masks; use "
            "pyramidinfer_kv, which makes the same choice of keys and values"
        )
