"""What a method says of itself besides its code: options to see it at work, and its memory.

Both are class attributes of the method. The tables of the documentation and the tests of all
methods read them there, so that a method needs no other file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from catekv.models.shape import ModelShape

Options = Mapping[str, Any] | Callable[[ModelShape], Mapping[str, Any]]

#: A budget that holds every prompt of the tests.
WHOLE = 999


@dataclass(frozen=True)
class Example:
    """Options with which a method shows what it does on a prompt of 48 tokens.

    Attributes:
        small: options that keep or read a part of the prompt; or a function that makes them for a
            model, where they depend on its heads (masks, scores).
        whole: options that keep and read all of it. None: ``small`` with a larger ``budget``.
        original: what attention reads are tokens of the prompt as they were. False: entries are
            merged, rotated or rebuilt.
        exact: the recommended preset can be given a total of entries and keeps exactly that.
        layers: of the model; more than 2 for a method that leaves some as they are.
    """

    small: Options
    whole: Options | None = None
    original: bool = True
    exact: bool = True
    layers: int = 2

    def options(self, kind: str, shape: ModelShape) -> dict[str, Any]:
        """The options of a kind, ``small`` or ``whole``, for a model."""
        given = self.small if kind == "small" or self.whole is None else self.whole
        found = dict(given(shape) if callable(given) else given)
        return {**found, "budget": WHOLE} if kind == "whole" and self.whole is None else found


@dataclass(frozen=True)
class MemoryFormula:
    """What a method keeps and reads of a prompt that is longer than what it keeps.

    Per KV head, as the mean over all heads of a model, under the ``recommended`` preset. Formulas
    are Python expressions of the method's options, ``T`` (tokens of the prompt), ``d`` (numbers of
    a key or value), ``s`` (bytes of a number), ``e = 2*d*s`` (bytes of an entry), ``L`` layers,
    ``H`` KV heads, ``Q`` query heads, ``kept``, ``floor``, ``ceil``, ``min``, ``max``, and
    ``terms``.

    Attributes:
        kept: entries stored.
        stored: bytes stored.
        read: entries that a step reads.
        besides: bytes that a step reads in addition; empty: none.
        terms: further terms by name, made from the method, the prompt's tokens and the model.
    """

    kept: str
    stored: str = "kept*e"
    read: str = "kept"
    besides: str = ""
    terms: Callable[[Any, int, ModelShape], Mapping[str, float]] | None = None


def head_numbers(shape: ModelShape) -> list[list[float]]:
    """A number in [0, 1) per layer and KV head, all different: scores or gates for an example."""
    heads = shape.layers * shape.kv_heads
    numbers = [(7 * index + 3) % 11 / 11 + index / (1000 * heads) for index in range(heads)]
    return [numbers[first : first + shape.kv_heads] for first in range(0, heads, shape.kv_heads)]
