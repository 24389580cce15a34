"""Prompts in the closed vocabulary of the embedded model, for every family but RULER."""

from __future__ import annotations

from typing import Any

from catekv.tasks.core.parts import Parts
from catekv.tasks.core.wording import Wording
from catekv.tasks.drawing.drawn_samples import Plan
from catekv.tasks.small.stories import SmallAsked
from catekv.tasks.wording.hay import Filler
from catekv.tasks.wording.small import SmallWording

WORDING = SmallWording()
FILLER = Filler(WORDING.filler_line)
#: new tokens for one value or name, and for a list of them
NEW_TOKENS, LIST_TOKENS = 16, 40
#: words of filler that may top a text up
EXTRA = 40


def is_small(wording: Wording) -> bool:
    """Whether prompts are asked for in this vocabulary."""
    return wording.name == WORDING.name


def small_parts(
    text: str,
    question: str,
    prefix: str,
    answer: str,
    scoring: dict[str, Any] | None = None,
    *,
    mark: str = "",
    max_new_tokens: int = NEW_TOKENS,
) -> Parts:
    """A prompt; ``mark`` is the piece of the text whose place is the answer's depth."""
    context = text + "\n"
    return Parts(
        context=context,
        question=question,
        answer_prefix=" " + prefix,
        outputs=(answer,),
        max_new_tokens=max_new_tokens,
        wording=WORDING.name,
        scoring=scoring or {},
        depths=(context.find(mark) / len(context),) if mark else (),
    )


def story_plan(
    asked: SmallAsked, scoring: dict[str, Any] | None = None, max_new_tokens: int = NEW_TOKENS
) -> Plan:
    """A question about a story; the unit is one word of it."""

    def draft(units: int, extra: int) -> Parts:
        return small_parts(
            asked.story.text(units),
            asked.question,
            asked.answer_prefix,
            asked.answer,
            scoring,
            max_new_tokens=max_new_tokens,
        )

    return Plan(draft)


def topped_up(text: str, extra: int) -> str:
    """The text, below a line of so many words of filler."""
    return f"{FILLER.words(extra)}\n{text}" if extra else text
