"""H2O (Zhang et al., 2023): the tokens that received most attention, and the most recent ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.methods.base import Method, ModelShape, Needs, Observed, Selection, register
from catekv.methods.scoring import top_mask

if TYPE_CHECKING:
    from catekv.layout import RaggedPrefix
    from catekv.slot_store import SlotStore


def received_attention(column_sums: Tensor, kv_heads: int) -> Tensor:
    """Column sums of the query heads [batch, query_heads, tokens] as mean over each KV head's
    group: float32 [batch, kv_heads, tokens]."""
    return column_sums.float().unflatten(1, (kv_heads, -1)).mean(dim=2)


def heavy_and_recent(sums: Tensor, heavy: int, recent: int) -> Tensor:
    """The last ``recent`` tokens and the ``heavy`` largest sums among the others.

    ``sums`` [..., tokens]; returns bool of the same shape. Ties go to the lower index.
    """
    keep = torch.ones_like(sums, dtype=torch.bool)
    before = max(0, sums.shape[-1] - recent)
    keep[..., :before] = top_mask(sums[..., :before], torch.tensor(heavy))
    return keep


@register
@dataclass(frozen=True)
class H2O(Method):
    """Keep ``budget`` tokens per head: the most recent ones and the heavy hitters.

    A token's score is the attention that it received from all prompt queries (causal softmax,
    summed in fp32, mean over the query group). It favours early tokens: they are seen more often.

    While decoding every new attention row is added to the running sums, and a head that holds more
    than its budget drops the smallest sum outside the recent window, which includes the new token.

    Args:
        budget: tokens kept per head, recent ones included.
        recent: tokens of the recent window; None: half of the budget.
        decode: go on evicting while decoding (as published); False: new tokens are appended.
    """

    name: ClassVar[str] = "h2o"
    paper: ClassVar[str] = "H2O: Heavy-Hitter Oracle for Efficient Generative Inference, 2023"

    budget: int = 1024
    recent: int | None = None
    decode: bool = True

    def __post_init__(self) -> None:
        if self.budget < 1 or not 1 <= self.recent_tokens <= self.budget:
            raise UserError(
                f"h2o: the recent window of {self.recent_tokens} tokens does not fit into budget "
                f"{self.budget}; use 1 <= recent <= budget"
            )

    @property
    def recent_tokens(self) -> int:
        return max(1, self.budget // 2) if self.recent is None else self.recent

    @property
    def needs(self) -> Needs:
        return Needs(column_sums=True)

    def budget_table(self, tokens: int, shape: ModelShape) -> Tensor:
        return torch.full((shape.layers, shape.kv_heads), min(tokens, self.budget))

    def select_observed(self, observed: Observed) -> Selection:
        assert observed.column_sums is not None
        sums = received_attention(observed.column_sums, observed.keys.shape[1])
        return Selection(
            heavy_and_recent(sums, self.budget - self.recent_tokens, self.recent_tokens)
        )

    def decode_store(
        self, prefix: RaggedPrefix, observed: Observed, valid: Tensor | None
    ) -> SlotStore | None:
        from catekv.slot_store import Eviction, SlotStore, kept_entries

        if not self.decode:
            return None
        keep = self.select_padded([observed], valid)[0].keep
        assert keep is not None
        assert observed.column_sums is not None
        sums = received_attention(observed.column_sums, keep.shape[1])
        entries = kept_entries(keep, sums, valid)
        return SlotStore(prefix, entries, Eviction(self.budget, self.recent_tokens))
