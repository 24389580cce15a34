"""Samples from rows that have lengths of their own.

A task turns each row into :class:`Parts`. :func:`limited` makes a sample of them and cuts the
context of a prompt that is too long, by the task's rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from catekv.errors import UserError
from catekv.tasks.core.parts import Parts, count, counted, prompt_format_of, unfitted
from catekv.tasks.core.sample import Sample
from catekv.tasks.core.task import BuildRequest
from catekv.tasks.drawing.drawn_samples import Plan, fitted
from catekv.tasks.rows.truncation import PromptCutter

__all__ = ["Parts", "Plan", "fitted", "limited", "unfitted"]


def limited(
    request: BuildRequest, index: int, parts: Parts, data: str, rule: str | None = "end"
) -> Sample:
    """A sample of a row; a prompt above the request's length loses a part of its context.

    Args:
        data: where the row comes from, for ``metadata["data"]``.
        rule: ``"end"`` cuts the end of the document in the context, ``"middle"`` the middle of the
            context; None refuses to cut.

    Raises:
        UserError: a prompt above the length that must not be cut, or of which nothing would stay.
    """
    wrapped = prompt_format_of(request, parts)
    answer = request.max_answer_tokens or parts.max_new_tokens
    tokens = count(wrapped, parts)
    if not request.length or tokens + answer <= request.length:
        return counted(request, index, parts, tokens, answer, data=data, cut_tokens=0)
    needed = tokens + answer
    if rule is None:
        raise UserError(
            f"{request.task.name}, sample {index}: {needed} tokens with the answer, "
            f"{request.length} are allowed, and a cut would falsify its answer; raise the length, "
            "or build the task at this length with source=built-in"
        )
    keep = _starts if rule == "end" else _ends
    shortened, whole = keep(request.tokenizer, parts.context[: parts.document_end])
    kept = min(whole, whole - (needed - request.length))
    while kept > 0:
        cut = replace(parts, context=shortened(kept) + parts.separator)
        tokens = count(wrapped, cut)
        if not _begins(cut.context, parts.context[: parts.uncut]):
            break
        if tokens + answer <= request.length:
            return counted(
                request, index, cut, tokens, answer, data=data, cut_tokens=whole - kept, cut=rule
            )
        kept -= tokens + answer - request.length
    raise UserError(
        f"{request.task.name}, sample {index}: question and answer leave no room for the text "
        f"within {request.length} tokens; raise the length"
    )


def _begins(text: str, start: str) -> bool:
    """Whether a text still begins with ``start``, white space aside, which decoding may change."""
    # decoding can lengthen a text by spaces between its words, not by more than there are letters
    return "".join(text[: 2 * len(start)].split()).startswith("".join(start.split()))


def _ends(tokenizer: Any, text: str) -> tuple[Callable[[int], str], int]:
    """The text with so many tokens of both ends together, and how many it has."""
    cutter = PromptCutter(tokenizer, text, "")
    return lambda kept: cutter.cut(kept, "v2").context if kept > 1 else "", cutter.tokens


def _starts(tokenizer: Any, text: str) -> tuple[Callable[[int], str], int]:
    """The start of the text with so many tokens, and how many it has."""
    fast = bool(getattr(tokenizer, "is_fast", False))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
    ids = list(encoded["input_ids"])
    if fast:
        # a character of several tokens may end with the last of them only: it is then left out
        offsets = encoded["offset_mapping"]
        return lambda kept: text[: offsets[kept][0]], len(ids)
    return lambda kept: str(tokenizer.decode(ids[:kept], skip_special_tokens=True)), len(ids)
