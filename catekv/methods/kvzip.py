"""KVzip (Kim et al., 2025): what the model looks at while it writes its context once more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from catekv.errors import NeedsAllHeadsError, UserError
from catekv.methods.base import Method, Needs, Observed, Selection
from catekv.methods.budgeted import Budgeted
from catekv.methods.example import Example, MemoryFormula
from catekv.methods.formulas.repeat import Repeat
from catekv.methods.formulas.scoring import top_mask
from catekv.methods.options import method_option
from catekv.methods.registry import register
from catekv.models.shape import ModelShape

#: Among which entries the best are chosen.
LEVELS = ("model", "layer", "head")


def above_the_last(scores: Tensor, counts: Tensor) -> Tensor:
    """Scores [..., entries] above the last of the ``counts`` [...] best, as released: one less than
    asked for. Infinite ones are always among them."""
    ordered = scores.sort(dim=-1, descending=True).values
    place = (counts - 1).clamp(0, scores.shape[-1] - 1).to(scores.device)
    last = ordered.gather(-1, place.expand(scores.shape[:-1])[..., None])
    return (scores > last) | scores.isinf()


@register
@dataclass(frozen=True)
class KVzip(Budgeted):
    """Keep what the model looks at most while it is made to write its context once more.

    After the prompt has been read it is repeated chunk by chunk behind itself, which takes about as
    long again. An entry's score is the most attention that a repeated token gives it in any query
    head of the group, in a softmax over the first tokens, the chunk and the repetition. A model
    without a tokenizer is fed the chunks alone, without words that ask for them.

    Args:
        budget: mean entries kept per head, first tokens included.
        total: entries of all layers and heads together, instead of ``budget``.
        level: what the entries that compete belong to: the ``model``, a ``layer`` or a ``head``.
        chunk: tokens that are repeated at a time.
        sinks: first tokens that are not repeated and always kept; at least all that the
            tokenizer's chat template writes before the user's text.
        plus: KVzip+: attention times the norm of the value behind the output projection, over that
            of the state which the attention read at the repeated token.
        strict: keep what scores above the last entry that fits, as released: one fewer.
    """

    name: ClassVar[str] = "kvzip"
    example = Example({"budget": 12, "chunk": 17, "sinks": 2})
    memory_formula = MemoryFormula("budget")
    paper: ClassVar[str] = (
        "KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction, 2025"
    )

    level: str = method_option("model", words=LEVELS)
    chunk: int = method_option(2000, least=1)
    sinks: int = method_option(4, least=0)
    plus: bool = False
    strict: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_more_sinks_than_budget(self.sinks)

    @property
    def way(self) -> Repeat:
        return Repeat(self.chunk, self.sinks, self.plus)

    @property
    def needs(self) -> Needs:
        return Needs(all_layers=True, output_projection=self.plus, repeats=(self.way,))

    def budget_table(self, tokens: int, shape: ModelShape) -> Tensor:
        table = super().budget_table(tokens, shape)
        fixed = self.level == "head" and not self.strict
        return table if fixed or bool((table >= tokens).all()) else Method.budget_table(
            self, tokens, shape
        )  # fmt: skip

    def for_heads(self, heads: slice) -> KVzip:
        if self.level == "head":
            return super().for_heads(heads)
        raise NeedsAllHeadsError(
            f"{self.name} compares the heads of a {self.level}, which no process of a "
            "tensor-parallel group has; use level=head"
        )

    def select_layers(self, observed: Sequence[Observed]) -> list[Selection]:
        if any(self.way not in layer.repeat_scores for layer in observed):
            raise UserError(
                f"{self.name} needs the model to repeat its prompt, which CateKVModel.prefill and "
                "observe have it do; prefill with them"
            )
        # layers may lie on different devices
        device = observed[0].keys.device
        scores = torch.stack([one.repeat_scores[self.way].to(device) for one in observed], dim=1)
        counts = self.counts(observed[0].tokens, observed[0].shape)
        kept = self.chosen(scores, counts[[layer.layer for layer in observed]])
        return [
            Selection(keep.to(layer.keys.device))
            for keep, layer in zip(kept.unbind(dim=1), observed, strict=True)
        ]

    def chosen(self, scores: Tensor, counts: Tensor) -> Tensor:
        """Which entries of scores [batch, layers, kv_heads, tokens] are kept, where heads have
        ``counts`` int64 [layers, kv_heads] entries to share with those that they compete with."""
        if bool((counts >= scores.shape[-1]).all()):
            return torch.ones_like(scores, dtype=torch.bool)
        first = {"model": 1, "layer": 2, "head": 3}[self.level]
        rows, places = scores.flatten(first), counts
        for _ in range(3 - first):
            places = places.sum(dim=-1)
        certain = rows.isinf().sum(dim=-1)
        if bool((certain.cpu() > places).any()):
            raise UserError(
                f"{self.name}: {int(places.min())} entries do not hold the {int(certain.max())} of "
                "the first tokens that are always kept; raise the budget or lower sinks"
            )
        kept = above_the_last(rows, places) if self.strict else top_mask(rows, places)
        return kept.view(scores.shape)
