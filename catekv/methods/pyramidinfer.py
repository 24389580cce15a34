"""PyramidInfer (Yang et al., 2024): layer after layer keeps less of what the one before kept."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from catekv.errors import NeedsAllHeadsError, UserError
from catekv.kernels.packing import pack_merged
from catekv.kernels.ragged import Merged, RaggedPrefix
from catekv.methods.base import Method, Needs, Observed, Selection
from catekv.methods.example import Example, MemoryFormula
from catekv.methods.formulas.scoring import top_mask
from catekv.methods.options import method_option
from catekv.methods.registry import register
from catekv.methods.stores.base import WholePrefix
from catekv.models.shape import ModelShape

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


def _mean_context(method: Any, tokens: int, shape: ModelShape) -> dict[str, float]:
    """The term of the memory formula: context tokens, mean over the layers."""
    sizes = context_sizes(
        tokens, shape.layers, method.least_ratio, method.recent, method.min_context
    )
    return {"context": sum(sizes[:-1]) / shape.layers}


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
    example: ClassVar[Example | None] = Example(
        {"least_ratio": 0.3, "min_context": 4, "sinks": 2},
        {"least_ratio": 1.0},
        exact=False,
        layers=3,
    )
    memory_formula: ClassVar[MemoryFormula | None] = MemoryFormula(
        "1 + floor(recent*T) + context",
        "kept*e + 8*kept/H + Q/H*min(window, 1 + floor(recent*T))*d*s",
        terms=_mean_context,
    )
    paper: ClassVar[str] = (
        "PyramidInfer: Pyramid KV Cache Compression for High-throughput LLM Inference, 2024"
    )

    least_ratio: float = method_option(0.9, least=0, most=1)
    recent: float = method_option(0.2, least=0, most=1)
    sinks: int = method_option(4, least=0)
    min_context: int = method_option(64, least=0)
    window: int = method_option(512, least=1)
    decode: bool = True
    block: int = method_option(16, least=1)
    block_share: float = method_option(0.9, least=0, most=1)
    least_block_ratio: float = method_option(0.1, least=0, most=1)

    def __post_init__(self) -> None:
        super().__post_init__()
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
        kept = int(self.budget_table(observed.tokens, observed.shape)[observed.layer, 0])
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

    @property
    def own_store(self) -> bool:
        return self.decode

    def decode_store(
        self,
        prefix: RaggedPrefix,
        observed: Observed,
        valid: Tensor | None,
        selection: Selection,
    ) -> BlockStore | None:

        if not self.decode:
            return None
        keep = decode_block_keep(
            observed.layer,
            observed.num_layers,
            self.block,
            self.block_share,
            self.least_block_ratio,
        )
        sequences = []
        for b in range(observed.keys.shape[0]):
            kept = selection.tokens[b, 0]
            seen = observed.tokens
            if valid is not None:
                kept, seen = kept[valid[b]], int(valid[b].sum())
            recent = recent_tokens(seen, self.recent)
            asked = min(recent, self.window, observed.queries.shape[2])
            queries = observed.queries[b, :, observed.queries.shape[2] - asked :].clone()
            sequences.append(SequenceState(kept.nonzero().squeeze(-1), queries, seen, recent))
        return BlockStore(prefix, sequences, BlockRule(self.block, keep, self.window))

    def _next(self, layer: Observed, b: int, positions: Tensor, kept: int) -> Tensor:
        """``kept`` of the ``positions`` (int64, ascending) that a layer holds."""
        if kept >= len(positions):
            return positions
        recent = recent_tokens(layer.tokens, self.recent)
        positions = positions.to(layer.keys.device)
        queries = layer.queries[b, :, max(0, layer.queries.shape[2] - recent) :]
        scores = context_scores(
            queries * layer.plain_scaling(self.name),
            layer.keys[b, :, positions],
            positions,
            layer.tokens,
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
    example = None
    memory_formula = None

    def __post_init__(self) -> None:
        super().__post_init__()
        raise UserError(
            "pyramidinfer removes tokens from the hidden states between layers, which a cache "
            "cannot do: transformers hands every layer the same positions and masks; use "
            "pyramidinfer_kv, which makes the same choice of keys and values"
        )


@dataclass(frozen=True)
class BlockRule:
    """When and how much is dropped.

    Attributes:
        block: tokens that leave the recent window before a choice is made among them.
        keep: how many of them stay.
        window: queries that score them, at most.
    """

    block: int
    keep: int
    window: int


@dataclass(frozen=True, eq=False)
class SequenceState:
    """What is known of one sequence of the batch; the same for all heads of the layer.

    Attributes:
        positions: int64 [entries], ascending.
        queries: [query_heads, queries, head_dim], those of the last tokens.
        seen: tokens so far, without padding. recent: size of the recent window.
        grown: tokens that left the recent window and have not been chosen among.
    """

    positions: Tensor
    queries: Tensor
    seen: int
    recent: int
    grown: int = 0


class BlockStore(WholePrefix):
    """PyramidInfer's context while decoding.

    The recent window keeps its size, so every new token pushes one out of it. Once a block of them
    is out, the recent queries choose which of the block stay. New tokens wait in the tail until
    they fill a block of some sequence.

    Args:
        prefix: what prefill left; immutable, so that copies share it.
        sequences: one per batch entry.
        rule: see there.
    """

    def __init__(self, prefix: RaggedPrefix, sequences: list[SequenceState], rule: BlockRule):
        self.prefix = prefix
        self.sequences = sequences
        self.rule = rule

    @torch.no_grad()
    def absorb(
        self, queries: Tensor, keys: Tensor, values: Tensor, scaling: float, visible: Tensor | None
    ) -> int:
        tail, asked = keys.shape[2], queries.shape[2]
        full = False
        for b, sequence in enumerate(self.sequences):
            new, waiting = queries[b], tail
            if visible is not None:
                new, waiting = new[:, visible[b, tail - asked :]], int(visible[b].sum())
            # padding and what came to other sequences must not decide when a block is full
            full |= sequence.grown + waiting >= self.rule.block
            joined = torch.cat([sequence.queries, new], dim=1)
            kept = min(self.rule.window, sequence.recent)
            self.sequences[b] = replace(sequence, queries=joined[:, -kept:].clone())
        if not full:
            return 0
        rows = []
        for b in range(keys.shape[0]):
            new_keys, new_values = keys[b], values[b]
            if visible is not None:
                new_keys, new_values = new_keys[:, visible[b]], new_values[:, visible[b]]
            rows.append(self._extended(b, new_keys, new_values, scaling))
        self.prefix = pack_merged(rows)
        return tail

    def _extended(self, b: int, keys: Tensor, values: Tensor, scaling: float) -> list[Merged]:
        """The rows of one sequence with new tokens, without what full blocks lost of it."""
        held = [self.prefix.row(b, head) for head in range(keys.shape[0])]
        all_keys = torch.cat([torch.stack([row[0] for row in held]), keys], dim=1)
        all_values = torch.cat([torch.stack([row[1] for row in held]), values], dim=1)
        known, count = self.sequences[b], keys.shape[1]
        new = torch.arange(known.seen, known.seen + count, device=keys.device)
        positions = torch.cat([known.positions.to(keys.device), new])
        seen, grown = known.seen + count, known.grown + count
        while grown >= self.rule.block:
            start = len(positions) - known.recent - grown
            scores = context_scores(known.queries * scaling, all_keys, positions, seen)
            stays = torch.ones_like(positions, dtype=torch.bool)
            part = slice(start, start + self.rule.block)
            stays[part] = top_mask(scores[part], torch.tensor(self.rule.keep))
            positions, all_keys, all_values = (
                positions[stays],
                all_keys[:, stays],
                all_values[:, stays],
            )
            grown -= self.rule.block
        self.sequences[b] = replace(known, positions=positions, seen=seen, grown=grown)
        return [Merged(*pair) for pair in zip(all_keys, all_values, strict=True)]

    def lengths(self) -> Tensor:
        return self.prefix.lengths.long()

    def tensors(self) -> list[Tensor]:
        own = [part for one in self.sequences for part in (one.positions, one.queries)]
        return self.prefix.tensors() + own

    def select_rows(self, indices: list[int]) -> BlockStore:
        chosen = copy.copy(self)
        chosen.prefix = self.prefix.select_rows(indices)
        chosen.sequences = [self.sequences[b] for b in indices]
        return chosen

    def __deepcopy__(self, memo: dict[int, Any]) -> BlockStore:
        return self.select_rows(list(range(self.prefix.batch)))
