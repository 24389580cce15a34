"""Values that are not finite: logits of damaged weights or too small a number format, and what a
training that diverged leaves.

The likeliest of such logits is some token all the same, so an answer would look like one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from catekv.errors import UserError


def broken_rows(logits: Tensor) -> Tensor:
    """Which rows hold NaN or infinity, bool [batch, 1], from logits [batch, vocabulary].

    Minus infinity is no fault: it is how models exclude tokens.
    """
    # the largest of numbers with a NaN among them is NaN, and NaN is below nothing
    return ~(logits.amax(dim=-1, keepdim=True) < torch.inf)


def fault(what: str, dtype: torch.dtype | None = None) -> UserError:
    """The error for logits that are not finite; ``what`` did the reading."""
    exceeded = "the number format" if dtype is None else str(dtype).removeprefix("torch.")
    return UserError(
        f"{what} with logits that are not finite: the model's weights are damaged or exceed "
        f"{exceeded}; load another checkpoint or dtype"
    )


def refuse_not_finite(logits: Tensor, what: str) -> None:
    """Refuse logits [batch, vocabulary] of which some row holds NaN or infinity.

    Raises:
        UserError: which sequences, if there are several.
    """
    if logits.is_meta:
        return
    rows = broken_rows(logits)[:, 0].nonzero()[:, 0].tolist()
    if rows:
        where = f" (sequences {', '.join(map(str, rows))})" if len(logits) > 1 else ""
        raise fault(f"{what}{where}", logits.dtype)


def refuse_diverged(tensors: Mapping[str, Tensor], what: str) -> None:
    """Refuse to write what was trained where some of it is not finite.

    Raises:
        UserError: the name of the first such tensor.
    """
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(
                f"training {what} diverged: {name} holds values that are not finite; nothing is "
                "written, give a smaller --learning-rate"
            )
