"""Samples that are drawn instead of read: as much text as fills the length.

A task gives an :class:`OpenSample`, and :func:`fitted` finds how many units of it fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from catekv.errors import UserError
from catekv.tasks.core.parts import Parts, count, counted, prompt_format_of
from catekv.tasks.core.sample import Sample
from catekv.tasks.core.task import BuildRequest
from catekv.tasks.core.tokenizers import word_counter
from catekv.tasks.drawing.fit import Fillable, check_filled, filled
from catekv.tasks.rows.sources import BUILT_IN, DataOptions

#: tokens of drawn samples of natural tasks when no length is given
OPEN_LENGTH = 4096
#: units of any text have at least half a token on average
_PIECES_A_TOKEN = 2
#: where endless text fills less, its characters are unknown to the tokenizer
_LEAST_FILL = 0.25


class OpenSample(Fillable, Protocol):
    """A sample with all its draws made, as parts of a prompt."""

    def draft(self, units: int, extra: int, /) -> Parts:
        """The prompt with so many units; equal arguments give equal parts.

        ``extra`` words of filler are added where one unit more would be too long.
        """


@dataclass(frozen=True)
class Plan:
    """An :class:`OpenSample` made of one function."""

    draft: Callable[[int, int], Parts]
    minimum: int = 0
    limit: int | None = None
    extra_limit: int = 0


def story_seed(request: BuildRequest, index: int) -> tuple[object, ...]:
    """What the text of a drawn sample follows from."""
    return (request.stream, request.seed, request.task.name, request.length, index)


def is_drawn(options: DataOptions, by_default: bool = False) -> bool:
    """Whether samples are drawn instead of read from rows.

    ``by_default``: they are unless a file or the hub is asked for.
    """
    return options.source == BUILT_IN or (
        by_default and options.source == "auto" and options.path is None
    )


def fitted(request: BuildRequest, index: int, plan: OpenSample) -> Sample:
    """The longest sample of a plan within the request's length.

    Raises:
        UserError: even the smallest sample is too long (the message says how long it is), the
            text is used up before a task that is not natural fills its length, or the tokenizer
            does not know the characters of the text.
    """
    target = request.length or OPEN_LENGTH
    # unknown characters may become one token together: such a text would grow without end
    limit = _PIECES_A_TOKEN * target if plan.limit is None else plan.limit
    wrapped = prompt_format_of(request, plan.draft(plan.minimum, 0))
    counter = word_counter(request.tokenizer)

    def allowance(parts: Parts) -> int:
        return request.max_answer_tokens or parts.max_new_tokens

    def exact(units: int, extra: int) -> int:
        parts = plan.draft(units, extra)
        return count(wrapped, parts) + allowance(parts)

    def estimate(units: int, extra: int) -> int:
        parts = plan.draft(units, extra)
        text = parts.context + parts.question + wrapped.after + parts.answer_prefix
        return counter(request.tokenizer, wrapped.before + text) + allowance(parts)

    name = request.task.name
    # the allowance may be the sample's own, so it is counted with the text and not reserved
    units, extra, tokens = filled(name, plan, estimate, exact, target, limit=limit)
    if plan.limit is None and tokens < _LEAST_FILL * target:
        raise UserError(
            f"{name} reaches only {tokens} of {target} tokens: this tokenizer does not know the "
            "characters of its text; take another tokenizer or wording"
        )
    if not request.task.natural:
        check_filled(name, tokens, target)
    parts = plan.draft(units, extra)
    answer = allowance(parts)
    notes = {"cut_tokens": 0} if request.task.natural else {}
    return counted(request, index, parts, tokens - answer, answer, data=BUILT_IN, **notes)
