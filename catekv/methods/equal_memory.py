"""Give one method the memory that another one takes."""

from __future__ import annotations

from typing import Any

from catekv.errors import UserError
from catekv.methods.base import Method, ModelShape, create


def mean_kept_tokens(method: Method, tokens: int, shape: ModelShape) -> float:
    """Entries that ``method`` keeps of a prompt, averaged over all layers and KV heads."""
    return float(method.budget_table(tokens, shape).double().mean())


def with_equal_memory(
    name: str, like: Method, tokens: int, shape: ModelShape, **options: Any
) -> Method:
    """A method whose heads keep as many tokens as those of ``like`` do on average.

    The mean is rounded to whole tokens per head, so that totals differ by at most half a token per
    head.

    Args:
        name: ``snapkv`` or ``streaming_llm``; ``full`` is returned as it is.
        like: a method with static budgets, for example CateKV with its mask.
        tokens: prompt length.
        shape: the model.
        options: other options of the method.

    Raises:
        UserError: the memory does not even hold the method's window or sinks, or the method has no
            budget to set.
    """
    kept = round(mean_kept_tokens(like, tokens, shape))
    if name == "full":
        return create(name, **options)
    if name == "streaming_llm":
        return create(name, budget=kept, **options)
    if name == "snapkv":
        window = create(name, **options).needs.window
        if kept < window:
            raise UserError(
                f"snapkv: {like.name} keeps {kept} tokens per head, fewer than snapkv's window of "
                f"{window}; lower window"
            )
        return create(name, budget=kept - window, **options)
    raise UserError(f"method {name!r} has no budget to set; use snapkv or streaming_llm")
