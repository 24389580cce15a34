"""SimCalKV (Cheng et al., 2025): removed tokens are merged into their most similar kept ones."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from catekv.errors import NeedsAllHeadsError, UserError
from catekv.kernels.packing import pack_merged
from catekv.kernels.ragged import Merged, RaggedPrefix
from catekv.methods.allocators import Demand, budgets_from
from catekv.methods.base import Method, Needs, Observed, Selection
from catekv.methods.example import Example, MemoryFormula
from catekv.methods.formulas.merging import removed_count
from catekv.methods.h2o import received_attention
from catekv.methods.options import method_option
from catekv.methods.registry import register
from catekv.methods.selection import MergedSelection
from catekv.methods.simcalkv.merge import (
    CALIBRATIONS,
    KEY_MEANS,
    ORDERS,
    MergedRow,
    MergeRule,
    merge_row,
    normalised_by_queries,
    removal_order,
)
from catekv.methods.stores.base import WholePrefix
from catekv.models.shape import ModelShape


@register
@dataclass(frozen=True)
class SimCalKV(Method):
    """Remove a share ``ratio`` of the tokens of every head; merge each into its nearest kept one.

    The tokens with the lowest column sums of the prompt's attention go (mean over the query group).
    Each is merged into the kept token with the largest cosine of their keys, if that exceeds
    ``threshold``, and dropped otherwise. Values are weighted by the attention of the last prompt
    query (mean over the group), keys averaged. An averaged key has too little attention for the
    tokens it stands for, which ``calibration`` repairs.

    Published defaults; ``recommended`` has ``calibration="logit"`` and ``key_mean="uniform"``,
    which is exact for equal tokens. The published score favours early tokens.

    Args:
        ratio: share removed: ``max(1, floor(tokens * ratio))`` tokens, none for 0, and all of them
            for 1, as of a prompt of one token.
        threshold: cosine that a merge must exceed; 0 as published, 0.8 in its threshold study.
        calibration: ``key_const`` (published): ln 2 on every key coordinate; ``logit``: the log of
            the number of tokens on the attention logit; ``none``.
        key_mean: ``half`` (published): the kept key has weight 1/2, the removed ones share the
            rest; ``uniform``: all weigh the same.
        merge_order: ``batched``, or ``sequential``: one removed token after the other updates the
            target (the published Qwen variant, with ``threshold=-1``).
        protect_initial, protect_recent: first and last tokens that are never removed.
        causal_normalise: divide a token's column sum by the number of queries that see it.
        remerge_every: merge again once so many tokens were decoded, down to the share that
            ``ratio`` leaves of all tokens seen, by the attention of the newest query; 0: never.
        budgets: how the kept tokens are split over layers and heads
            (:mod:`catekv.methods.allocators`); default: evenly.
        total: entries of all layers and heads together, exact, instead of ``ratio``.
    """

    name: ClassVar[str] = "simcalkv"
    example = Example({"ratio": 0.6}, {"ratio": 0.0}, original=False)
    memory_formula = MemoryFormula("T - max(1, floor(T*ratio))", "kept*(e + 4)", besides="4*kept")
    paper: ClassVar[str] = "Similarity-Aware KV Cache Merging with Bias Calibration, MSN 2025"
    recommended: ClassVar[dict[str, Any]] = {"calibration": "logit", "key_mean": "uniform"}

    ratio: float = method_option(0.4, least=0, most=1)
    threshold: float = method_option(0.0, least=-1, most=1)
    calibration: str = method_option("key_const", words=CALIBRATIONS)
    key_mean: str = method_option("half", words=KEY_MEANS)
    merge_order: str = method_option("batched", words=ORDERS)
    protect_initial: int = method_option(0, least=0)
    protect_recent: int = method_option(0, least=0)
    causal_normalise: bool = False
    remerge_every: int = method_option(0, least=0)
    budgets: Any = method_option(None, convert=budgets_from)
    total: int | None = method_option(None, least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.merge_order == "sequential" and self.key_mean != "half":
            raise UserError(
                f"{self.name}: a sequential merge halves the key at every step; use "
                "key_mean='half' or merge_order='batched'"
            )

    @property
    def needs(self) -> Needs:
        return Needs(window=1, column_sums=True)

    @property
    def rule(self) -> MergeRule:
        return MergeRule(self.threshold, self.calibration, self.key_mean, self.merge_order)

    def validate(self, shape: ModelShape) -> None:
        self.budgets.validate(shape)

    def budget_table(self, tokens: int, shape: ModelShape) -> Tensor:
        heads = shape.layers * shape.kv_heads
        edges = min(tokens, self.protect_initial + self.protect_recent)
        kept = tokens - removed_count(tokens, self.ratio)
        demand = Demand(kept - edges, tokens, edges, shape)
        if self.total is None and kept < edges:
            raise UserError(
                f"{self.name}: ratio {self.ratio} leaves {kept} of {tokens} tokens but {edges} are "
                "protected; lower the ratio, protect_initial or protect_recent"
            )
        if self.total is None:
            return self.budgets.table(demand) + edges
        if self.total < edges * heads:
            raise UserError(
                f"{self.name}: a total of {self.total} does not hold the {edges} protected tokens "
                f"of {heads} heads ({edges * heads}); raise it or protect fewer"
            )
        if self.total >= tokens * heads:
            return torch.full((shape.layers, shape.kv_heads), tokens)
        return self.budgets.exact_table(demand, self.total - edges * heads) + edges

    def with_total(self, total: int, tokens: int, shape: ModelShape) -> SimCalKV:
        """The method keeping exactly ``total`` entries of a prompt of ``tokens`` tokens.

        Raises:
            UserError: the total does not hold what is protected.
        """
        kept = min(1.0, total / (shape.layers * shape.kv_heads * tokens))
        method = replace(self, total=total, ratio=1 - kept)
        method.budget_table(tokens, shape)  # refuses what cannot be
        return method

    def for_heads(self, heads: slice) -> SimCalKV:
        if self.total is not None:
            raise NeedsAllHeadsError(
                f"{self.name}: a total is split over all heads, which no process of a "
                "tensor-parallel group has; use ratio"
            )
        return replace(self, budgets=self.budgets.for_heads(heads))

    def select_observed(self, observed: Observed) -> Selection:
        assert observed.column_sums is not None
        keys, values = observed.keys, observed.values
        batch, heads, tokens, _ = keys.shape
        scores = received_attention(observed.column_sums, heads)
        if self.causal_normalise:
            scores = normalised_by_queries(scores)
        kept = self.budget_table(tokens, observed.shape)[observed.layer].tolist()
        edges = (self.protect_initial, self.protect_recent)

        def row(b: int, head: int) -> Merged:
            removed = removal_order(scores[b, head], tokens - kept[head], *edges)
            logits = last_query_logits(observed, b, head)
            return self.entries(
                merge_row(keys[b, head], values[b, head], logits, removed, self.rule)
            )

        return MergedSelection(
            merged=[[row(b, head) for head in range(heads)] for b in range(batch)]
        )

    def entries(self, row: MergedRow) -> Merged:
        """A merged row as the cache stores it."""
        bias = row.log_counts if self.calibration == "logit" else None
        return Merged(row.keys, row.values, bias)

    @property
    def own_store(self) -> bool:
        return self.remerge_every > 0

    def decode_store(
        self, prefix: RaggedPrefix, observed: Observed, valid: Tensor | None, selection: Selection
    ) -> RemergeStore | None:

        if not self.remerge_every:
            return None
        batch, tokens = observed.keys.shape[0], observed.tokens
        seen = [tokens] * batch if valid is None else valid.sum(dim=-1).tolist()
        return RemergeStore(prefix, self, seen, observed.layer, observed.shape)


def last_query_logits(observed: Observed, b: int, head: int) -> Tensor:
    """Logits of the last prompt query (mean over the query group): float32 [tokens]."""
    group = observed.group
    queries = observed.queries[b, head * group : (head + 1) * group, -1].float()
    return observed.keys[b, head].float() @ queries.mean(dim=0) * observed.plain_scaling("simcalkv")


class RemergeStore(WholePrefix):
    """The merged prefix of SimCalKV, rebuilt with the tail once that holds enough tokens.

    Entries are then scored by the attention of the newest query, and merged until a row holds what
    the method's budget says for all tokens seen.

    Args:
        prefix: what prefill left; immutable, so that copies share it.
        method: the options.
        seen: tokens of each sequence so far, without padding.
        layer, shape: which layer of which model, for budgets that differ.
    """

    # merges are counted in tokens of the whole batch
    padded_from = math.inf

    def __init__(
        self,
        prefix: RaggedPrefix,
        method: SimCalKV,
        seen: list[int],
        layer: int,
        shape: ModelShape,
    ):
        self.prefix = prefix
        self.method = method
        self.seen = seen
        self.layer = layer
        self.shape = shape

    @torch.no_grad()
    def absorb(
        self, queries: Tensor, keys: Tensor, values: Tensor, scaling: float, visible: Tensor | None
    ) -> int:
        tail = keys.shape[2]
        if tail < self.method.remerge_every:
            return 0
        batch, heads = keys.shape[:2]
        newest = queries[:, :, -1].unflatten(1, (heads, -1)).float() * scaling
        merged: list[list[Merged]] = []
        for b in range(batch):
            new_keys, new_values = keys[b], values[b]
            if visible is not None:
                new_keys, new_values = new_keys[:, visible[b]], new_values[:, visible[b]]
            self.seen[b] += new_keys.shape[1]
            kept = self.method.budget_table(self.seen[b], self.shape)[self.layer].tolist()
            merged.append(
                [
                    self._merge(
                        b, head, new_keys[head], new_values[head], newest[b, head], kept[head]
                    )
                    for head in range(heads)
                ]
            )
        self.prefix = pack_merged(merged)
        return tail

    def _merge(
        self, b: int, head: int, new_keys: Tensor, new_values: Tensor, query: Tensor, kept: int
    ) -> Merged:
        """Merge one row and its tail; ``query`` [group, head_dim] is scaled."""
        method = self.method
        keys, values, bias = self.prefix.row(b, head)
        keys, values = torch.cat([keys, new_keys]), torch.cat([values, new_values])
        log_counts = query.new_zeros(len(keys))
        if bias is not None:
            log_counts[: len(bias)] = bias
        logits = query @ keys.float().T
        scores = (logits + log_counts).softmax(dim=-1).mean(dim=0)
        count = max(0, len(keys) - kept)
        removed = removal_order(scores, count, method.protect_initial, method.protect_recent)
        return method.entries(
            merge_row(keys, values, logits.mean(dim=0), removed, method.rule, log_counts)
        )

    def lengths(self) -> Tensor:
        return self.prefix.lengths.long()

    def tensors(self) -> list[Tensor]:
        return self.prefix.tensors()

    def select_rows(self, indices: list[int]) -> RemergeStore:
        chosen = copy.copy(self)
        chosen.prefix = self.prefix.select_rows(indices)
        chosen.seen = [self.seen[b] for b in indices]
        return chosen

    def __deepcopy__(self, memo: dict[int, Any]) -> RemergeStore:
        return self.select_rows(list(range(self.prefix.batch)))
