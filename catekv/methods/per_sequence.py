"""One method per sequence of a batch: equal-memory budgets follow the length of each prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.methods.base import Method, Needs, Observed, Selection
from catekv.methods.selection import joined
from catekv.models.shape import ModelShape


class NotTogetherError(UserError):
    """Differing methods whose decode-time stores cannot serve one batch."""


@dataclass(frozen=True)
class PerSequence(Method):
    """Methods of one kind with options of their own for every sequence.

    Args:
        methods: one per sequence of the batch, all of the same class.

    A method that goes on while decoding reads its options from one store for the whole batch; for
    differing ones compression raises :class:`NotTogetherError`, and the caller asks one by one.
    """

    name: ClassVar[str] = "per_sequence"

    methods: tuple[Method, ...] = ()

    @property
    def needs(self) -> Needs:
        return self.methods[0].needs

    @property
    def prefill_attention(self) -> str:
        return self.methods[0].prefill_attention

    def validate(self, shape: ModelShape) -> None:
        for method in self.methods:
            method.validate(shape)

    def budget_table(self, tokens: int, shape: ModelShape) -> Tensor:
        """The largest budget of any sequence per head, so that an estimate of memory is enough."""
        tables = [method.budget_table(tokens, shape) for method in self.methods]
        return torch.stack(tables).amax(dim=0)

    def for_heads(self, heads: slice) -> Method:
        return dataclasses.replace(
            self, methods=tuple(method.for_heads(heads) for method in self.methods)
        )

    def select_padded(self, layers: Sequence[Observed], valid: Tensor | None) -> list[Selection]:
        rows = []
        for b, method in enumerate(self.methods):
            own = None if valid is None else valid[b : b + 1]
            rows.append(method.select_padded([_row(layer, b) for layer in layers], own))
        return [
            joined([row[index] for row in rows], layer.keys, layer.values)
            for index, layer in enumerate(layers)
        ]

    def decode_store(self, *arguments: Any, **options: Any) -> None:
        if self.methods[0].decode_store(*arguments, **options) is not None:
            raise NotTogetherError(
                f"method {self.methods[0].name!r} goes on while decoding, with other options for "
                "every sequence of this batch; compress the sequences one by one"
            )

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "methods": [method.to_dict() for method in self.methods]}


def together(methods: Sequence[Method]) -> Method:
    """One method for a batch: the common one where all are alike, else :class:`PerSequence`."""
    first = methods[0]
    described = first.to_dict()
    if all(method is first or method.to_dict() == described for method in methods[1:]):
        return first
    return PerSequence(tuple(methods), store=first.store)


def _row(layer: Observed, b: int) -> Observed:
    """One sequence of a layer, padding included."""

    moments = layer.query_moments

    def part(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[b : b + 1]

    return dataclasses.replace(
        layer,
        queries=layer.queries[b : b + 1],
        keys=layer.keys[b : b + 1],
        values=layer.values[b : b + 1],
        column_sums=part(layer.column_sums),
        hidden_states=part(layer.hidden_states),
        query_moments=moments and moments.rows(slice(b, b + 1)),
        attention_inputs=part(layer.attention_inputs),
        repeat_scores={way: scores[b : b + 1] for way, scores in layer.repeat_scores.items()},
    )
