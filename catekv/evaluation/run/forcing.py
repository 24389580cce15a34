"""What a model says of given tokens behind a compressed context (teacher forcing).

A context is not consumed. Methods that choose what to read, or go on evicting, at every step get
the tokens one by one, as they would be generated; all others get them in one forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from catekv.cache.continuation import feed
from catekv.decode.question_parts import in_order, parts_of
from catekv.errors import UserError

if TYPE_CHECKING:
    from catekv.cache.cache import RaggedCache
    from catekv.decode.context import Context
    from catekv.decode.question_parts import Part
    from catekv.model import CateKVModel


def reads_by_step(context: Context) -> bool:
    """Whether a context's method keeps a store, which may choose or evict at every decode step."""
    return any(layer.store is not None for layer in context.cache.ragged_layers)


def forced(
    model: CateKVModel,
    context: Context,
    continuations: Sequence[Sequence[int]],
    questions: Sequence[Sequence[int]] | None = None,
    *,
    following: bool = False,
    singly: bool | None = None,
    cache: RaggedCache | None = None,
) -> list[Tensor]:
    """Log probabilities of the whole vocabulary before every token of given continuations.

    Args:
        continuations: ids, one row per sequence of the context; lengths may differ.
        questions: ids between each context and its continuation.
        following: with those of the token that would follow the continuation.
        singly: feed the continuation token by token; None: where the method keeps a store, which
            may read or evict by the step.
        cache: the fork of a single sequence's cache to feed, for who measures what it becomes.

    Returns:
        Per sequence natural log probabilities, fp32 [tokens (+ 1 with ``following``), vocabulary].

    Raises:
        UserError: another number of continuations or questions than the context has sequences.
    """
    batch = len(context.input_ids)
    asked = [list(ids) for ids in questions] if questions is not None else [[]] * batch
    if len(continuations) != batch or len(asked) != batch:
        raise UserError(
            f"{len(continuations)} continuations and {len(asked)} questions for a context of "
            f"{batch} sequences; pass one each"
        )
    if cache is not None and batch > 1:
        raise UserError("a cache to feed can be given for a single sequence only")
    if singly is None:
        singly = reads_by_step(context)
    ids, mask = _left_padded(asked, model.device)
    parts = parts_of(model.model, context.cache, ids, mask)
    rows = []
    for part in parts:
        view = context if len(parts) == 1 else context.rows(part.rows)
        tokens = [list(continuations[row]) for row in part.rows]
        fed = view.cache.fork() if cache is None else cache
        logits = _forced(model, view, fed, part, tokens, following, singly)
        rows.append([
            logits[place, : len(row) + following].float().log_softmax(dim=-1)
            for place, row in enumerate(tokens)
        ])  # fmt: skip
    return in_order(parts, rows)


def _forced(
    model: CateKVModel,
    context: Context,
    cache: RaggedCache,
    part: Part,
    tokens: Sequence[list[int]],
    following: bool,
    singly: bool,
) -> Tensor:
    """Logits [sequences, longest continuation (+ 1), vocabulary]. Shorter continuations are padded
    on the right, where nothing that counts can see it."""
    longest = max(map(len, tokens))
    padded = [row + [0] * (longest - len(row)) for row in tokens]
    ids = torch.tensor(padded, dtype=torch.long, device=model.device).view(len(tokens), longest)
    ids = ids[:, : longest if following else max(longest - 1, 0)]
    mask = _whole_mask(context, part, ids)
    logits: list[Tensor] = []
    if not part.ids.shape[1]:
        logits.append(context.last_logits[:, None])
    elif singly:
        logits.append(feed(model.model, part.ids, cache, mask))
    else:
        count = ids.shape[1] + 1
        return feed(model.model, torch.cat([part.ids, ids], dim=1), cache, mask, last=count)
    pieces = ids.split(1, dim=1) if singly else (ids,)
    for piece in pieces if ids.shape[1] else ():
        logits.append(feed(model.model, piece, cache, mask, last=piece.shape[1]))
    return torch.cat(logits, dim=1)


def _whole_mask(context: Context, part: Part, ids: Tensor) -> Tensor | None:
    """Mask of context, question and continuation; None without padding."""
    if context.attention_mask is None and part.mask is None:
        return None
    pieces = [
        torch.ones_like(piece) if mask is None else mask.to(piece.dtype)
        for piece, mask in (
            (context.input_ids, context.attention_mask),
            (part.ids, part.mask),
            (ids, None),
        )
    ]
    return torch.cat(pieces, dim=1)


def _left_padded(rows: Sequence[list[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Ids [rows, longest] and their mask; None where all are equally long."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long, device=device)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        if row:
            ids[place, -len(row) :] = torch.tensor(row, device=device)
            mask[place, -len(row) :] = 1
    return ids, None if bool(mask.all()) else mask


def log_likelihoods(scores: Tensor, ids: Sequence[int]) -> Tensor:
    """Log probability of every token of a continuation, fp32 [tokens].

    Args:
        scores: of :func:`forced`; rows beyond the continuation are ignored.
    """
    target = torch.tensor(list(ids), dtype=torch.long, device=scores.device)
    return scores[: len(ids)].gather(-1, target[:, None])[:, 0]
