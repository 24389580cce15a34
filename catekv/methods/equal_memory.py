"""Give one method the memory that another one takes."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Protocol, runtime_checkable

from catekv.errors import UserError
from catekv.methods.base import Method
from catekv.methods.registry import create
from catekv.models.shape import ModelShape


@runtime_checkable
class TakesTotal(Protocol):
    """A method that can be told exactly how many entries all its heads keep together."""

    def with_total(self, total: int, tokens: int, shape: ModelShape) -> Method:
        """The method keeping ``total`` entries of a prompt of ``tokens`` tokens; ``UserError`` if
        it cannot."""


def total_kept(method: Method, tokens: int, shape: ModelShape) -> int:
    """Entries that ``method`` keeps of a prompt, over all layers and KV heads.

    Of methods that move tokens between heads, what they are given to move.

    Raises:
        UserError: the method decides by the prompt's content how many it keeps.
    """
    return int(method.given_table(tokens, shape).sum())


def keeps_everything(method: Method, tokens: int, shape: ModelShape) -> bool:
    """Whether a method compresses nothing of a prompt of ``tokens`` tokens: all entries stay, are
    read at every step and stored as they are. False where only the prompt's content decides."""
    if method.store in ("int8", "fp8"):
        return False
    try:
        return total_kept(method, tokens, shape) >= tokens * shape.layers * shape.kv_heads
    except UserError:
        return False


def mean_kept_tokens(method: Method, tokens: int, shape: ModelShape) -> float:
    """Entries that ``method`` keeps of a prompt, averaged over all layers and KV heads."""
    return total_kept(method, tokens, shape) / (shape.layers * shape.kv_heads)


def with_total(method: Method, total: int, tokens: int, shape: ModelShape) -> Method:
    """``method`` keeping ``total`` entries of a prompt of ``tokens`` tokens.

    Exact for every method that :class:`TakesTotal`. Another method with a ``budget`` gets the
    largest that keeps no more; one that keeps everything and skips or moves it gets the mean as the
    budget that a step reads.

    Raises:
        UserError: the total does not hold what the method always keeps, or the method has no budget
            to set.
    """
    if isinstance(method, TakesTotal):
        return method.with_total(total, tokens, shape)
    if method.effect == "keeps":
        return method
    if "budget" not in [item.name for item in fields(method)]:
        raise UserError(
            f"method {method.name!r} has no budget to set, so that it cannot be given the memory "
            "of another method; compare it at its own options, or give the class an option budget "
            "or with_total(self, total, tokens, shape)"
        )
    heads = shape.layers * shape.kv_heads
    if method.effect != "frees":
        return _with_budget(method, max(1, round(total / heads)))
    total_kept(method, tokens, shape)  # refuses methods that decide by the prompt's content
    low, high = 0, tokens + 1  # `low` keeps no more than the total, `high` more
    while high - low > 1:
        middle = (low + high) // 2
        kept = _kept_with_budget(method, middle, tokens, shape)
        low, high = (middle, high) if kept is None or kept <= total else (low, middle)
    if _kept_with_budget(method, low, tokens, shape) is None:
        raise UserError(
            f"no budget makes method {method.name!r} keep as few as {total} entries of {tokens} "
            f"tokens in {heads} heads; raise the total or lower what it always keeps"
        )
    return _with_budget(method, low)


def _with_budget(method: Method, budget: int) -> Method:
    options: dict[str, Any] = {"budget": budget}
    return replace(method, **options)


def _kept_with_budget(method: Method, budget: int, tokens: int, shape: ModelShape) -> int | None:
    """Entries kept; None where the method refuses the budget, because it is too small."""
    try:
        return total_kept(_with_budget(method, budget), tokens, shape)
    except UserError:
        return None


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
        UserError: see :func:`with_total`.
    """
    return with_total(create(name, **options), total_kept(like, tokens, shape), tokens, shape)
