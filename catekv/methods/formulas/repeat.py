"""What tokens receive while the model writes its context once more (KVzip)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from catekv.kernels.logits import PLAIN, LogitForm, softmax_with_sink
from catekv.methods.formulas.blocks import block_floats

#: Numbers of float32 logits that are held at once: 16 MiB, of which the softmax makes a copy.
FLOATS = 1 << 22


@dataclass(frozen=True)
class Repeat:
    """How the context is repeated.

    Attributes:
        chunk: tokens that are repeated at a time.
        sinks: first tokens that are not repeated, at least; what a chat template writes before the
            user's text is not either.
        plus: weigh attention by what the value adds to the residual stream.
    """

    chunk: int = 2000
    sinks: int = 4
    plus: bool = False


def value_norms(values: Tensor, projection: Tensor) -> Tensor:
    """L2 norms of values [tokens, head_dim] behind the output projection of every query head of
    their group [group, head_dim, hidden_size]: float32 [group, tokens]."""
    projection = projection.float()
    # the norm needs products of rows alone, which are smaller than the outputs
    rows = projection @ projection.transpose(1, 2)
    squares = []
    for part in values.split(max(1, block_floats(values.device) // rows[:, 0].numel())):
        states = part.float()
        squares.append((states @ rows).mul_(states).sum(dim=-1))
    return torch.cat(squares, dim=-1).clamp_(min=0).sqrt_()


def largest_attention(
    queries: Tensor,
    keys: Tensor,
    scored: slice,
    new: int,
    scaling: float,
    form: LogitForm = PLAIN,
    norms: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The most that each scored key of a head gets from any query of its group: float32 [scored].

    Args:
        queries: [group, queries, head_dim], those of the newest tokens of the repetition.
        keys: [entries, head_dim], of which the last ``new`` are those of the repetition so far,
            which queries see causally.
        scored: which of the keys.
        scaling, form: of the logits; the sinks of ``form`` are those of the group.
        norms: of the values [group, scored], by which attention is multiplied, and of the states
            that the attention read at the queries [queries], by which it is divided (KVzip+).
    """
    group, count, _ = queries.shape
    keys, old = keys.float(), len(keys) - new
    sink = None if form.sinks is None else form.sinks[:, None, None]
    found = torch.zeros(scored.stop - scored.start, device=keys.device)
    order = torch.arange(new, device=keys.device)
    for first in range(0, count, block := max(1, FLOATS // (group * len(keys)))):
        rows = slice(first, first + block)
        logits = form.cap_(scaling * (queries[:, rows].float() @ keys.T))
        logits[..., old:].masked_fill_(order > order[new - count :][rows, None], -torch.inf)
        attention = softmax_with_sink(logits, sink)[..., scored]
        if norms is not None:
            attention = attention * norms[0][:, None] / norms[1][rows, None]
        found = found.maximum(attention.amax(dim=(0, 1)))
    return found
