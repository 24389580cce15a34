"""Prompts above a limit, cut in the middle by LongBench's rules."""

from __future__ import annotations

from typing import NamedTuple

from catekv.errors import UserError
from catekv.tasks.core.prompt import PromptFormat
from catekv.tasks.families.longbench.prompt_text import PromptText
from catekv.tasks.rows.truncation import CutPrompt, PromptCutter


class Shortened(NamedTuple):
    """A prompt within its limit.

    ``removed`` counts the tokens cut, ``tokens`` those of the finished prompt. ``boundary`` is
    False where the cut reaches into the question: then the context part holds all of the text.
    """

    text: PromptText
    removed: int
    tokens: int
    boundary: bool


def shorten(
    wrapped: PromptFormat,
    text: PromptText,
    limit: int | None,
    rule: str,
    *,
    official: bool,
    literal: bool,
) -> Shortened:
    """The prompt, its middle cut out if it has more than ``limit`` tokens (None: no limit).

    Args:
        rule: ``"v1"`` or ``"v2"``, see :func:`catekv.tasks.rows.truncation.middle_cut`.
        official: the limit is on the ids of the unwrapped prompt, which is cut once; else on the
            finished one, which is cut until it fits. The begun answer is never cut.
        literal: see :meth:`PromptFormat.encode`.

    Raises:
        UserError: nothing of the text would stay.
    """

    def count(made: PromptText) -> int:
        return len(wrapped.encode(*made, literal=literal))

    if limit is None:
        return Shortened(text, 0, count(text), True)
    cutter = PromptCutter(wrapped.tokenizer, text.context, text.question, verbatim=not official)
    room = limit
    if official:
        room -= len(wrapped.tokens(text.answer_prefix))
        cut = cutter.cut(_enough(room, limit), rule)
        made = _joined(cut, text)
        return Shortened(made, cut.removed, count(made), cut.boundary)
    while True:
        cut = cutter.cut(_enough(room, limit), rule)
        made = _joined(cut, text)
        tokens = count(made)
        if tokens <= limit:
            return Shortened(made, cut.removed, tokens, cut.boundary)
        room = min(room, cutter.tokens) - (tokens - limit)


def _joined(cut: CutPrompt, text: PromptText) -> PromptText:
    return PromptText(cut.context, cut.question, text.answer_prefix)


def _enough(room: int, limit: int) -> int:
    if room < 2:
        raise UserError(
            f"a limit of {limit} tokens leaves no room for the text beside chat template and begun "
            "answer; raise length= or max_prompt_tokens="
        )
    return room
