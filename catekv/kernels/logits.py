"""What some models do to attention logits between the product and the softmax."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LogitForm:
    """The steps between ``scaling * q @ k`` and the attention probabilities.

    Attributes:
        softcap: c: logits become ``c * tanh(logits / c)`` before masks and biases are added
            (Gemma 2); None: they stay.
        sinks: [query_heads], a learned logit per head that takes part in the softmax without a key
            and a value, so that probabilities sum to less than 1 (gpt-oss); it is neither scaled
            nor capped. None: there is none.
    """

    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether the softmax follows the product directly."""
        return self.softcap is None and self.sinks is None

    def __str__(self) -> str:
        parts = []
        if self.softcap is not None:
            parts.append(f"a soft cap of {self.softcap:g} on its attention logits (softcap)")
        if self.sinks is not None:
            parts.append("attention sinks (s_aux)")
        return " and ".join(parts) or "plain attention logits"

    def cap_(self, logits: Tensor) -> Tensor:
        """Cap logits of any shape in place."""
        if self.softcap is None:
            return logits
        return logits.div_(self.softcap).tanh_().mul_(self.softcap)

    def of_member(self, member: int, group: int) -> LogitForm:
        """The form of one query head of every KV head, each of which has ``group``."""
        return self if self.sinks is None else replace(self, sinks=self.sinks[member::group])

    def sinks_of(self, first: int, stop: int, dtype: torch.dtype) -> Tensor | None:
        """The sinks of the query heads from ``first`` on, [stop - first]."""
        return None if self.sinks is None else self.sinks[first:stop].to(dtype)


PLAIN = LogitForm()


def softmax_with_sink(logits: Tensor, sink: Tensor | None) -> Tensor:
    """Softmax over the last dimension of capped and masked logits; ``sink`` is broadcast against
    ``logits[..., :1]``."""
    if sink is None:
        return logits.softmax(dim=-1)
    column = sink.to(logits.dtype).expand_as(logits[..., :1])
    return torch.cat([logits, column], dim=-1).softmax(dim=-1)[..., :-1]
