"""Generated four-choice questions (v2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from catekv.tasks.core.parts import Parts
from catekv.tasks.drawing import stories
from catekv.tasks.drawing.drawn_samples import Plan
from catekv.tasks.families.longbench.built_in.base import Draws
from catekv.tasks.families.longbench.choice_rows import LETTERS, ChoiceRow, answer_text
from catekv.tasks.rows.sources import BUILT_IN
from catekv.tasks.small import stories as small_stories
from catekv.tasks.small.parts import small_parts
from catekv.tasks.wording.spelling import named

#: words below which a text counts as short and as medium
_SHORT, _MEDIUM = 32_000, 128_000
_DOMAIN = "Single-Document QA"


def length_group(words: int) -> str:
    """LongBench v2's name for a text of so many words."""
    return "short" if words < _SHORT else "medium" if words < _MEDIUM else "long"


def choice_plan(draws: Draws, prompt: Callable[[ChoiceRow], Parts]) -> Plan:
    """A question about one fact in a long story; the unit is a word of prose."""
    asked = stories.choice(draws.seed("story"))
    order = [*asked.answers, *asked.wrong]
    draws.random("order").shuffle(order)
    first, second, third, fourth = order

    def draft(units: int, extra: int) -> Parts:
        text = asked.story.text(units)
        row = ChoiceRow(
            identifier=BUILT_IN,
            context=text,
            question=asked.question,
            choices=(first, second, third, fourth),
            answer=LETTERS[order.index(asked.answers[0])],
            difficulty="easy",
            length=length_group(len(text.split())),
            domain=_DOMAIN,
            sub_domain=BUILT_IN,
        )
        return prompt(row)

    return Plan(draft, minimum=1)


def small_choice_plan(draws: Draws) -> Plan:
    """Four noted values as choices; the one that an answer names stands for its letter."""
    asked = small_stories.needles(draws.seed("story"))
    values = [asked.answer, *asked.wrong]
    draws.random("order").shuffle(values)
    letters = dict(zip(values, LETTERS, strict=True))
    meaning = {value: answer_text(letter) for value, letter in letters.items()}
    scoring = {"answer": letters[asked.answer], "spelling": named(meaning)}
    question = " ".join(f"{value} ." for value in values) + "\n" + asked.question

    def draft(units: int, extra: int) -> Parts:
        text = asked.story.text(units)
        parts = small_parts(text, question, asked.answer_prefix, asked.answer, scoring)
        notes = {
            "id": BUILT_IN,
            "difficulty": "easy",
            "length": length_group(len(text.split())),
            "domain": _DOMAIN,
            "sub_domain": BUILT_IN,
        }
        return replace(parts, metadata=notes)

    return Plan(draft)
