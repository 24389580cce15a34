"""CaM (Zhang et al., 2024): the values of tokens that leave are added to those that follow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from catekv.errors import NeedsAllHeadsError, UserError
from catekv.kernels.ragged import Merged, RaggedPrefix
from catekv.methods.allocators import budgets_from
from catekv.methods.base import Needs, Observed, Selection
from catekv.methods.budgeted import Budgeted
from catekv.methods.example import Example, MemoryFormula
from catekv.methods.formulas.draws import uniform_numbers
from catekv.methods.h2o import (
    H2O,
    received_attention,
    row_capacities,
    selected_entries,
    with_halved_window,
)
from catekv.methods.options import assign, method_option
from catekv.methods.registry import register
from catekv.methods.selection import MergedSelection
from catekv.methods.stores.slots import Entries, Eviction, Newcomer, SlotStore
from catekv.methods.streaming_llm import StreamingLLM
from catekv.models.shape import ModelShape

KEEPS = ("streaming_llm", "h2o")
DENOMINATORS = ("max", "average")


def merge_probability(
    leaving: Tensor, kept: Tensor, rank: Tensor, following: int, denominator: str
) -> Tensor:
    """How likely the value of a leaving token is merged: float32 [leaving].

    Args:
        leaving: attention that the leaving tokens received [leaving].
        kept: the same of the kept tokens, in order [kept], at least one.
        rank: int64 [leaving], kept tokens that precede each leaving one.
        following: how many of the next kept tokens take the value.
        denominator: ``max`` of all kept ones, or the ``average`` of those that take it.
    """
    if denominator == "max":
        below = kept.max()
    else:
        sums = torch.cat([kept.new_zeros(1).double(), kept.double().cumsum(0)])
        stop = (rank + following).clamp(max=len(kept))
        below = ((sums[stop] - sums[rank]) / (stop - rank).clamp(min=1)).float()
    return (leaving / below.clamp(min=torch.finfo(torch.float32).tiny)).clamp(0.0, 1.0)


def added_values(parts: Tensor, rank: Tensor, kept: int, following: int) -> Tensor:
    """What the kept tokens of a row get: float32 [kept, dim].

    ``parts`` float32 [leaving, dim] goes to each of the ``following`` kept tokens from ``rank`` on.
    """
    starting = parts.new_zeros(kept + 1, parts.shape[-1], dtype=torch.float64)
    starting.index_add_(0, rank, parts.double())
    running = starting[:kept].cumsum(0)
    running[following:] -= running[:-following].clone() if following < kept else 0.0
    return running.float()


@register
@dataclass(frozen=True)
class CaM(Budgeted):
    """Keep what StreamingLLM or H2O keeps; values that leave may be merged into the next ones.

    When a token leaves, its value is added to the values of the next ``merge_tokens`` kept tokens,
    an equal part to each, with a probability that is its mean attention so far over a denominator.
    Keys are unchanged. After prefill all tokens that are not kept leave at once.

    Args:
        budget: mean tokens kept per head.
        total: entries of all layers and heads together, instead of ``budget``.
        rule: ``streaming_llm`` or ``h2o``, which decides what is kept.
        sinks: first tokens that StreamingLLM keeps.
        recent: recent window of H2O; None: half of the budget.
        merge_tokens: kept tokens that take a value; None: the recent tokens of the budget.
        denominator: ``max`` of the kept tokens' attention (as run) or ``average`` of that of the
            tokens which take the value (the paper's equation 14).
        expected: add the expected value instead of drawing (deterministic).
        seed: of the draws; a draw depends on layer, head and position only.
        decode: go on evicting and merging while decoding; False: new tokens are appended.
        budgets: how the tokens are split over layers and heads
            (:mod:`catekv.methods.allocators`); default: evenly.
    """

    name: ClassVar[str] = "cam"
    example = Example({"budget": 12}, original=False)
    memory_formula = MemoryFormula("budget", "kept*(e + 16)", besides="4*kept")
    paper: ClassVar[str] = "CaM: Cache Merging for Memory-efficient LLMs Inference, ICML 2024"
    edges_in_budget: ClassVar[bool] = True

    rule: str = method_option("streaming_llm", words=KEEPS)
    sinks: int = 4
    recent: int | None = method_option(None, least=0)
    merge_tokens: int | None = method_option(None, least=1)
    denominator: str = method_option("max", words=DENOMINATORS)
    expected: bool = False
    seed: int = 0
    decode: bool = True
    budgets: Any = method_option(None, convert=budgets_from)

    def __post_init__(self) -> None:
        if self.keep in KEEPS:  # the name that the option had before
            assign(self, rule=self.keep, keep=None)
        super().__post_init__()
        self.keeper  # noqa: B018 - refuses budgets that do not hold what is always kept
        if self.rule == "streaming_llm" and self.budget <= self.sinks:
            raise UserError(
                f"cam: budget {self.budget} leaves no recent tokens beside {self.sinks} sinks; "
                "raise the budget"
            )

    @property
    def keeper(self) -> H2O | StreamingLLM:
        """The method whose choice this one merges into."""
        shared: dict[str, Any] = {
            "budget": self.budget,
            "total": self.total,
            "budgets": self.allocator,
        }
        if self.rule == "h2o":
            return H2O(**shared, recent=self.recent)
        return StreamingLLM(**shared, sinks=self.sinks)

    @property
    def needs(self) -> Needs:
        return Needs(column_sums=True)

    def edges(self) -> int:
        return self.keeper.edges()

    def with_total(self, total: int, tokens: int, shape: ModelShape) -> CaM:
        if self.rule == "h2o" and self.recent is None:
            return with_halved_window(self, total, tokens, shape)
        return super().with_total(total, tokens, shape)

    @property
    def following(self) -> int:
        """Kept tokens that take a value."""
        if self.merge_tokens is not None:
            return self.merge_tokens
        return self.keeper.edges() if self.rule == "h2o" else self.budget - self.sinks

    def for_heads(self, heads: slice) -> CaM:
        if not self.expected:
            raise NeedsAllHeadsError(
                "cam: what is drawn for a head depends on its number in the layer, which a process "
                "of a tensor-parallel group does not know; use expected=true"
            )
        return super().for_heads(heads)

    def merges(self, probability: Tensor, layer: int, head: Tensor, position: Tensor) -> Tensor:
        """The share of a leaving value that is merged: 0 or 1 drawn, or the expected one."""
        if self.expected:
            return probability
        return (uniform_numbers(self.seed, layer, head, position) < probability).float()

    def select_observed(self, observed: Observed) -> Selection:
        assert observed.column_sums is not None
        batch, heads = observed.keys.shape[:2]
        sums = received_attention(observed.column_sums, heads)
        keep = self.keeper.select_observed(observed).keep
        assert keep is not None

        def row(b: int, head: int) -> Merged:
            stays = keep[b, head]
            keys, values = observed.keys[b, head, stays], observed.values[b, head, stays]
            left = (~stays).nonzero().squeeze(-1)
            if not len(left) or not len(keys):
                return Merged(keys, values)
            rank = stays.cumsum(0)[left]
            chance = merge_probability(
                sums[b, head, left], sums[b, head, stays], rank, self.following, self.denominator
            )
            share = self.merges(chance, observed.layer, left.new_tensor(head), left)
            parts = observed.values[b, head, left].float() * (share / self.following)[:, None]
            added = added_values(parts, rank, len(keys), self.following)
            return Merged(keys, (values.float() + added).to(values.dtype))

        return MergedSelection(
            merged=[[row(b, head) for head in range(heads)] for b in range(batch)],
            stays=keep,
        )

    @property
    def own_store(self) -> bool:
        return self.decode

    def decode_store(
        self, prefix: RaggedPrefix, observed: Observed, valid: Tensor | None, selection: Selection
    ) -> CamStore | None:
        from catekv.methods.stores.slots import Eviction

        if not self.decode:
            return None
        entries = selected_entries(selection, observed, valid)
        capacities = row_capacities(self, observed)
        if self.rule == "h2o":
            rule = Eviction(capacities, self.edges())
        else:
            rule = Eviction(capacities, 1, self.sinks, oldest=True)
        return CamStore(prefix, entries, rule, self, observed.layer)


_FAR = torch.iinfo(torch.int64).max


class CamStore(SlotStore):
    """Adds values that leave to the next ``method.following`` entries by position.

    Args:
        prefix, entries, rule: as for every :class:`SlotStore`.
        method: denominator, draws.
        layer: index of the layer, for the draws.
    """

    def __init__(
        self, prefix: RaggedPrefix, entries: Entries, rule: Eviction, method: CaM, layer: int
    ):
        self.method = method
        self.layer = layer
        super().__init__(prefix, entries, rule)

    def leave(self, slot: Tensor, newcomer: Newcomer, leaving: Tensor) -> Newcomer:
        entries = self.entries
        rows, width = entries.positions.shape
        heads = self.prefix.kv_heads
        here = slot.clamp(max=width - 1)[:, None]
        left_position, left_score = (
            entries.positions.gather(1, here),
            entries.scores.gather(1, here),
        )
        # the newcomer is one of those that stay
        position = torch.cat([entries.positions.scatter(1, here, -1), entries.seen[:, None]], dim=1)
        score = torch.cat([entries.scores, newcomer.known["scores"][:, None]], dim=1)
        following = min(self.method.following, width + 1)
        later = position.masked_fill(position <= left_position, _FAR)
        nearest, order = (part[:, :following] for part in later.sort(dim=1))
        takes = nearest < _FAR
        if self.method.denominator == "max":
            below = score.masked_fill(position < 0, 0.0).amax(dim=1, keepdim=True)
        else:
            among = score.gather(1, order).masked_fill(~takes, 0.0).sum(dim=1, keepdim=True)
            below = among / takes.sum(dim=1, keepdim=True).clamp(min=1)
        chance = (left_score / below.clamp(min=torch.finfo(torch.float32).tiny)).clamp(0.0, 1.0)
        head = torch.arange(rows, device=slot.device)[:, None] % heads
        share = self.method.merges(chance, self.layer, head, left_position)
        share = share.masked_fill(~leaving[:, None], 0.0) / self.method.following
        storage = self.prefix.values
        part = storage[self.slots(width).gather(1, here).squeeze(1)].float() * share
        given = part[:, None] * takes[..., None]
        to_newcomer = (order == width)[..., None]
        value = newcomer.value.float() + (given * to_newcomer).sum(dim=1)
        # places outside a row's room name a slot in it, and are given nothing
        place = self.slots(width).gather(1, order.clamp(max=width - 1))
        stored = given.masked_fill(to_newcomer, 0.0).to(storage.dtype)
        storage.index_put_((place,), stored, accumulate=True)
        return replace(newcomer, value=value.to(newcomer.value.dtype))
