"""Padding of batches: on the left, where it stands before everything that is remembered."""

from __future__ import annotations

from torch import Tensor

from catekv.errors import UserError


def refuse_unless_left_padding(mask: Tensor) -> None:
    """``UserError`` if a mask [batch, columns] hides anything else than columns on the left.

    Padding elsewhere would be observed as the end of the context, or counted as its positions.
    """
    seen = mask.bool()
    empty = ~seen.any(dim=-1)
    broken = (seen[:, :-1] & ~seen[:, 1:]).any(dim=-1)
    if not bool((empty | broken).any()):
        return
    row = int((empty | broken).int().argmax())
    if bool(empty[row]):
        raise UserError(
            f"row {row} has no token, nothing but padding; pass at least one token a row"
        )
    place = "on the right" if not bool(seen[row, -1]) else "between tokens"
    raise UserError(
        f"row {row} of the attention_mask hides columns {place}; only padding on the left can be "
        "told from the context: tokenise with padding_side='left'"
    )
