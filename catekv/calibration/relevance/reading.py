"""One forward over a text in which every layer is looked at and then forgotten."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from catekv.errors import UserError
from catekv.methods.base import Method, Needs, Observed, Selection
from catekv.models.shape import ModelShape
from catekv.tasks.core.prompt import encode

if TYPE_CHECKING:
    from catekv.model import CateKVModel
    from catekv.tasks.core.sample import Sample


@dataclass(frozen=True)
class Text:
    """A context and the tokens that came after it: the question and an answer."""

    context: tuple[int, ...]
    later: tuple[int, ...]


@dataclass(frozen=True)
class _Visit(Method):
    """Shows every layer to ``visit`` and keeps its last token only, so that layers do not pile up
    in memory."""

    visit: Callable[[Observed], None] = field(kw_only=True)
    looked_at: Needs = field(kw_only=True)

    @property
    def needs(self) -> Needs:
        return self.looked_at

    def budget_table(self, tokens: int, shape: ModelShape) -> torch.Tensor:
        return torch.ones(shape.layers, shape.kv_heads, dtype=torch.int64)

    def select_observed(self, observed: Observed) -> Selection:
        self.visit(observed)
        keep = torch.zeros(observed.keys.shape[:3], dtype=torch.bool, device=observed.keys.device)
        keep[..., -1] = True
        return Selection(keep)

    def to_dict(self) -> dict[str, Any]:
        return {"name": "visit"}


def visit_layers(
    model: CateKVModel,
    text: Text,
    visit: Callable[[Observed], None],
    chunk_size: int = 8192,
    needs: Needs | None = None,
) -> None:
    """Read a text and call ``visit`` for every layer, first to last; one layer is held at a time.

    ``visit`` gets the whole text, with what it ``needs``; default: the queries of its later tokens,
    received attention and hidden states.
    """
    default = Needs(window=len(text.later), column_sums=True, hidden_states=True)
    method = _Visit(visit=visit, looked_at=needs or default)
    model.prefill([*text.context, *text.later], method=method, chunk_size=chunk_size)


def texts_of(
    model: CateKVModel,
    samples: Sequence[Sample],
    answer_tokens: int = 32,
    chat_template: str = "auto",
    chunk_size: int = 8192,
) -> list[Text]:
    """Samples as contexts with the question and the model's own greedy answer, read with the full
    cache.

    Args:
        answer_tokens: of an answer at most.

    Raises:
        UserError: a sample where nothing follows the context.
    """
    found = []
    for sample in samples:
        prompt = encode(sample, model.tokenizer, chat_template)
        context = model.prefill(prompt.context_ids, method="full", chunk_size=chunk_size)
        allowed = min(answer_tokens, sample.max_new_tokens)
        answer = model.generate_ids(prompt.question_ids, context, allowed).tokens
        later = (*prompt.question_ids, *answer)
        if not later:
            raise UserError(
                f"sample {sample.index} of {sample.task} has no question and got no answer; "
                "predictors learn from what follows a context"
            )
        found.append(Text(tuple(prompt.context_ids), tuple(later)))
    return found
