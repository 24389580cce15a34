"""Give one method the memory that another one takes."""

from __future__ import annotations

from typing import Any

from catekv.errors import UserError
from catekv.methods.base import Method
from catekv.methods.registry import create
from catekv.methods.stores import QUANTISED
from catekv.models.shape import ModelShape


def keeps_everything(method: Method, tokens: int, shape: ModelShape) -> bool:
    """Whether a method compresses nothing of a prompt of ``tokens`` tokens: all entries stay, are
    read at every step and stored as they are. False where only the prompt's content decides."""
    if method.store in QUANTISED:
        return False
    try:
        read = method.for_prompt(tokens, shape).step_table(tokens, shape)
    except UserError:
        return False
    return bool((read >= tokens).all())


def mean_read_tokens(method: Method, tokens: int, shape: ModelShape) -> float:
    """Entries of a prompt that a step of ``method`` reads, averaged over all layers and KV heads:
    those that it keeps, or less."""
    return float(method.for_prompt(tokens, shape).step_table(tokens, shape).double().mean())


def with_equal_memory(
    name: str, like: Method, tokens: int, shape: ModelShape, **options: Any
) -> Method:
    """A method that keeps as many entries of a prompt as ``like`` does, over all heads together.

    Args:
        name: a method; ``full`` is returned as it is.
        like: a method with static budgets, for example CateKV with its mask.
        tokens: prompt length.
        shape: the model.
        options: other options of the method.

    Raises:
        UserError: see :meth:`Method.with_total`.
    """
    return create(name, **options).with_total(like.total_kept(tokens, shape), tokens, shape)
