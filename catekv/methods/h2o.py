"""H2O (Zhang et al., 2023): the tokens that received most attention, and the most recent ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from catekv.errors import UserError
from catekv.methods.allocators import budgets_from
from catekv.methods.base import Needs, Observed, Selection
from catekv.methods.budgeted import Budgeted, BudgetedType
from catekv.methods.example import Example, MemoryFormula
from catekv.methods.formulas.scoring import top_mask
from catekv.methods.options import method_option
from catekv.methods.registry import register
from catekv.models.shape import ModelShape

if TYPE_CHECKING:
    from catekv.kernels.ragged import RaggedPrefix
    from catekv.methods.stores.slots import Entries, SlotStore

#: A prompt so long that no budget is limited by it.
ENDLESS = 1 << 40


def received_attention(column_sums: Tensor, kv_heads: int) -> Tensor:
    """Column sums of the query heads [batch, query_heads, tokens] as mean over each KV head's
    group: float32 [batch, kv_heads, tokens]."""
    return column_sums.float().unflatten(1, (kv_heads, -1)).mean(dim=2)


def heavy_and_recent(sums: Tensor, heavy: Tensor, recent: int) -> Tensor:
    """The last ``recent`` tokens and the ``heavy`` largest sums among the others.

    ``sums`` [..., tokens], ``heavy`` int, broadcast to [...]; returns bool of the shape of
    ``sums``. Ties go to the lower index.
    """
    before = max(0, sums.shape[-1] - recent)
    keep = sums.new_ones(sums.shape).bool()
    keep[..., :before] = top_mask(sums[..., :before], heavy)
    return keep


def row_capacities(method: Budgeted, observed: Observed) -> list[int]:
    """Entries that each row of a layer may hold while decoding, in (batch, head) order."""
    table = method.budget_table(ENDLESS, observed.shape)[observed.layer]
    return [int(count) for count in table] * observed.keys.shape[0]


def selected_entries(selection: Selection, observed: Observed, valid: Tensor | None) -> Entries:
    """Positions of what was selected, kept or merged into, and the attention it received.

    Args:
        valid: bool [batch, tokens], False on padding; None: no padding.
    """
    from catekv.methods.stores.slots import kept_entries

    keep = selection.tokens
    assert observed.column_sums is not None
    return kept_entries(keep, received_attention(observed.column_sums, keep.shape[1]), valid)


def with_halved_window(
    method: BudgetedType, total: int, tokens: int, shape: ModelShape
) -> BudgetedType:
    """``with_total`` of a method whose recent window is half of its budget: it becomes half of what
    there is now."""
    options: dict[str, Any] = {"budget": max(1, total // (shape.layers * shape.kv_heads))}
    changed = replace(method, total=total, **options)
    changed.counts(tokens, shape)  # refuses what cannot be
    return changed


@register
@dataclass(frozen=True)
class H2O(Budgeted):
    """Keep ``budget`` tokens per head: the most recent ones and the heavy hitters.

    A token's score is the attention that it received from all prompt queries (causal softmax,
    summed in fp32, mean over the query group). It favours early tokens: they are seen more often.

    While decoding every new attention row is added to the running sums, and a head that holds more
    than its budget drops the smallest sum outside the recent window, which includes the new token.

    Args:
        budget: mean tokens kept per head, recent ones included.
        total: entries of all layers and heads together, instead of ``budget``.
        recent: tokens of the recent window; None: half of the budget.
        decode: go on evicting while decoding (as published); False: new tokens are appended.
        budgets: how the heavy hitters are split over layers and heads; default: evenly
            (:mod:`catekv.methods.allocators`).
    """

    name: ClassVar[str] = "h2o"
    example = Example({"budget": 12})
    memory_formula = MemoryFormula("budget", "kept*(e + 16)", besides="4*kept")
    paper: ClassVar[str] = "H2O: Heavy-Hitter Oracle for Efficient Generative Inference, 2023"

    edges_option: ClassVar[str] = "recent"
    edges_in_budget: ClassVar[bool] = True

    recent: int | None = None
    decode: bool = True
    budgets: Any = method_option(None, convert=budgets_from)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.edges() <= self.budget:
            raise UserError(
                f"{self.name}: a recent window of {self.edges()} tokens does not fit into budget "
                f"{self.budget}; use 1 <= recent <= budget"
            )

    @property
    def needs(self) -> Needs:
        return Needs(column_sums=True)

    def edges(self) -> int:
        return max(1, self.budget // 2) if self.recent is None else self.recent

    def with_total(self, total: int, tokens: int, shape: ModelShape) -> H2O:
        if self.recent is not None:
            return super().with_total(total, tokens, shape)
        return with_halved_window(self, total, tokens, shape)

    def select_observed(self, observed: Observed) -> Selection:
        assert observed.column_sums is not None
        sums = received_attention(observed.column_sums, observed.keys.shape[1])
        heavy = self.counts(observed.tokens, observed.shape)[observed.layer]
        return Selection(heavy_and_recent(sums, heavy.to(sums.device), self.edges()))

    @property
    def own_store(self) -> bool:
        return self.decode

    def decode_store(
        self, prefix: RaggedPrefix, observed: Observed, valid: Tensor | None, selection: Selection
    ) -> SlotStore | None:
        from catekv.methods.stores.slots import Eviction, SlotStore

        if not self.decode:
            return None
        rule = Eviction(row_capacities(self, observed), self.edges())
        return SlotStore(prefix, selected_entries(selection, observed, valid), rule)
