"""Cutting prompts that are too long for a model in the middle, by LongBench's two rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from catekv.errors import UserError

Token = TypeVar("Token")
RULES = ("v1", "v2")


class Cut(NamedTuple):
    """How many tokens stay at the start and at the end, and how many between them go."""

    head: int
    tail: int
    removed: int


def middle_cut(tokens: int, limit: int, rule: str = "v1") -> Cut:
    """What is kept of a prompt that may have ``limit`` tokens.

    ``"v1"`` keeps ``limit // 2`` at both ends, so an odd limit keeps one token less. ``"v2"`` keeps
    ``limit // 2`` at the start and the rest of the limit at the end.

    Raises:
        UserError: unknown rule; a limit below 2, which leaves nothing of one end.
    """
    if rule not in RULES:
        raise UserError(f"unknown truncation rule {rule!r}; valid: {', '.join(RULES)}")
    if limit < 2:
        raise UserError(f"cannot cut a prompt to {limit} tokens; the limit must be 2 or more")
    if tokens <= limit:
        return Cut(tokens, 0, 0)
    head = limit // 2
    tail = head if rule == "v1" else limit - head
    return Cut(head, tail, tokens - head - tail)


def halves(
    tokens: Sequence[Token], limit: int, rule: str = "v1"
) -> tuple[Sequence[Token], Sequence[Token], int]:
    """The kept start, the kept end and the number of tokens cut.

    LongBench v1 decodes both parts without special tokens, joins the texts, wraps them in the chat
    template and encodes again, which can exceed the limit by a few tokens.
    """
    cut = middle_cut(len(tokens), limit, rule)
    return tokens[: cut.head], tokens[len(tokens) - cut.tail :], cut.removed


def keep_ends(tokens: Sequence[Token], limit: int, rule: str = "v1") -> list[Token]:
    """The kept tokens of both ends, in order."""
    head, tail, _ = halves(tokens, limit, rule)
    return [*head, *tail]
