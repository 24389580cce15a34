"""Questions to a batch of contexts, in parts that can be asked at once.

Questions of unequal length are left-padded, so padding lies between a context and its question.
Attention over the whole context hides it with a mask. Layers with a window or a recurrent state
count it: there only questions of equal length are asked together, so that every sequence gets what
it gets alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor
from torch.nn import Module

from catekv.cache.cache import RaggedCache
from catekv.cache.continuation import hides_padding
from catekv.decode.generation import Generation, Piece
from catekv.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """Some sequences of a batch, and their questions.

    Attributes:
        rows: their places in the batch.
        ids: [sequences, tokens]; may have no tokens.
        mask: [sequences, tokens], 0 on padding (on the left); None: no padding.
    """

    rows: tuple[int, ...]
    ids: Tensor
    mask: Tensor | None = None


def parts_of(model: Module, cache: RaggedCache, ids: Tensor, mask: Tensor | None) -> list[Part]:
    """The questions in parts that may follow the contexts of ``cache`` at once.

    Args:
        model: reads them; one that counts padding gets questions of equal length only.
        ids: [batch, tokens], left-padded. mask: [batch, tokens] or None without padding.
    """
    if mask is None:
        return [Part(tuple(range(len(ids))), ids)]
    together_from = cache.padded_from if hides_padding(model) else math.inf
    alike: dict[float, list[int]] = {}
    for row, length in enumerate(mask.sum(dim=-1).tolist()):
        alike.setdefault(min(length, together_from), []).append(row)
    return [_part(rows, ids, mask) for rows in alike.values()]


def _part(rows: list[int], ids: Tensor, mask: Tensor) -> Part:
    first = ids.shape[1] - int(mask[rows].sum(dim=-1).max())
    own = mask[rows, first:]
    return Part(tuple(rows), ids[rows, first:], None if bool(own.all()) else own)


def refuse_apart(parts: Sequence[Part]) -> None:
    """``UserError`` if tokens that are to stay in one batch must be read in several parts."""
    if len(parts) > 1:
        longest = [part.ids.shape[1] for part in parts]
        raise UserError(
            f"turns of up to {', '.join(map(str, longest))} tokens cannot be added to one batch: "
            "padding would take the place of a turn, or be counted by windows, recurrent layers or "
            "the method; give all sequences turns of one length, or extend Context.rows([i]) each"
        )


def answers_of(
    parts: Sequence[Part], answer: Callable[[Part], Generator[Piece, None, Generation]]
) -> Generator[Piece, None, Generation]:
    """Answer one part after another; the pieces of text as they come, in the end one
    :class:`Generation` of the whole batch. Its times and steps are sums over the parts."""
    found = []
    for part in parts:
        found.append((yield from answer(part)))
    if len(parts) == 1:
        return found[0]
    rows = in_order(parts, [one.rows for one in found])
    texts = [one.texts for one in found if one.texts is not None]
    return Generation(
        rows[0],
        rows,
        sum(one.question_seconds for one in found),
        sum(one.decode_seconds for one in found),
        sum(one.steps for one in found),
        in_order(parts, texts) if texts else None,
        all(one.captured for one in found),
        next((one.reason for one in found if one.reason is not None), None),
        sum(one.capture_seconds for one in found),
    )


def in_order(parts: Sequence[Part], found: Sequence[Sequence[T]]) -> list[T]:
    """What was found for the sequences of each part, in the order of the batch. A part may have
    several results per sequence, one after another."""
    placed: dict[int, list[T]] = {}
    for part, results in zip(parts, found, strict=True):
        each = len(results) // len(part.rows)
        for number, row in enumerate(part.rows):
            placed[row] = list(results[number * each : (number + 1) * each])
    return [result for row in sorted(placed) for result in placed[row]]
