"""What is known of a layer's entries when a method chooses among them while decoding."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Held:
    """Entries of some heads of one sequence: what stayed at the last event, and the tokens since.

    Attributes:
        positions: int64 [1, kv_heads, entries], where each token stood, without padding; ascending.
        seen: tokens of the sequence so far, which is also the position of the next one.
        prompt: how many of them are its prompt.
        heads: int64 [kv_heads], their numbers in the layer.
    """

    positions: Tensor
    seen: int
    prompt: int
    heads: Tensor
