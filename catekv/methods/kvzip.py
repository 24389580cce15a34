"""KVzip (Kim et al., 2025): what the model looks at while it writes its context once more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from catekv.errors import UserError
from catekv.methods.base import Needs, Observed
from catekv.methods.example import Example, MemoryFormula
from catekv.methods.formulas.repeat import Repeat
from catekv.methods.level_scored import LevelScored
from catekv.methods.options import method_option
from catekv.methods.registry import register


def above_the_last(scores: Tensor, counts: Tensor) -> Tensor:
    """Scores [..., entries] above the last of the ``counts`` [...] best, as released: one less than
    asked for. Infinite ones are always among them."""
    ordered = scores.sort(dim=-1, descending=True).values
    place = (counts - 1).clamp(0, scores.shape[-1] - 1).to(scores.device)
    last = ordered.gather(-1, place.expand(scores.shape[:-1])[..., None])
    return (scores > last) | scores.isinf()


@register
@dataclass(frozen=True)
class KVzip(LevelScored):
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

    certain: ClassVar[str] = "first"
    certain_options: ClassVar[str] = "sinks"

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

    @property
    def exact_counts(self) -> bool:
        return not self.strict

    def layer_scores(self, observed: Observed) -> Tensor:
        if self.way not in observed.repeat_scores:
            raise UserError(
                f"{self.name} needs the model to repeat its prompt, which CateKVModel.prefill and "
                "observe have it do; prefill with them"
            )
        return observed.repeat_scores[self.way]

    def best(self, scores: Tensor, places: Tensor) -> Tensor:
        return above_the_last(scores, places) if self.strict else super().best(scores, places)
