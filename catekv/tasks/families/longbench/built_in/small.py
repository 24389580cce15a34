"""Generated samples in the closed vocabulary of the embedded model.

They keep the shape of a task as far as that vocabulary can say it: questions look up noted values
or follow a chain, classes and paragraphs are values, summaries list values. The model knows these
patterns from its training, except for counting copies.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from catekv.tasks.core.parts import Parts
from catekv.tasks.drawing.drawn_samples import Plan
from catekv.tasks.drawing.stories import Story
from catekv.tasks.families.longbench.built_in.base import Draws
from catekv.tasks.rows.sources import BUILT_IN
from catekv.tasks.small import stories
from catekv.tasks.small.parts import LIST_TOKENS, NEW_TOKENS, WORDING, small_parts
from catekv.tasks.small.stories import SmallAsked
from catekv.tasks.wording.spelling import named

if TYPE_CHECKING:
    from catekv.tasks.families.longbench.prompts import Prompts

_CHAINS = {"hotpotqa": 2, "2wikimqa": 2, "musique": 3}
_LISTS = ("gov_report", "qmsum", "multi_news", "vcsum", "samsum")


def _copies(draws: Draws) -> SmallAsked:
    """Noted values, some of them noted again word for word: how many are different?"""
    random, wording = draws.random("copies"), WORDING
    different = random.randint(4, 9)
    keys = wording.keys("words", different, random)
    values = wording.values("numbers", different, random)
    lines = [wording.needle("numbers", *pair) for pair in zip(keys, values, strict=True)]
    lines += random.choices(lines, k=random.randint(2, 6))
    places = [(random.random(), line) for line in lines]
    story = Story(wording.essay(draws.random("prose")), places, block=False)
    return SmallAsked(story, "ask all ?", "all", f"{different:02d}")


def small_plan(prompts: Prompts, draws: Draws) -> Plan:
    """A generated sample of a task; the unit is a word of prose."""
    facts = prompts.facts
    asked = _asked(facts.name, draws)
    scoring = _scoring(prompts, asked)
    # a line of code is compared sign by sign, and the model ends every answer with a full stop
    end = " ." if facts.metric == "edit_similarity" else ""
    allowed = LIST_TOKENS if facts.name in _LISTS else NEW_TOKENS

    def draft(units: int, extra: int) -> Parts:
        text = asked.story.text(units)
        parts = small_parts(
            text,
            asked.question,
            asked.answer_prefix,
            asked.answer + end,
            scoring,
            max_new_tokens=allowed,
        )
        return replace(
            parts,
            stop=facts.stop,
            metadata=prompts.notes(BUILT_IN, len(text.split())),
            without_template=not facts.chat,
        )

    return Plan(draft)


def _asked(name: str, draws: Draws) -> SmallAsked:
    seed = draws.seed("story")
    if name == "passage_count":
        return _copies(draws)
    if name in _CHAINS:
        return stories.chain(seed, _CHAINS[name])
    return stories.summary(seed, 3) if name in _LISTS else stories.needles(seed)


def _scoring(prompts: Prompts, asked: SmallAsked) -> dict[str, Any]:
    """Classes and paragraphs are the values that the story notes."""
    facts = prompts.facts
    values = sorted((asked.answer, *asked.wrong))
    if facts.metric == "classification":
        return {"all_classes": values}
    if facts.metric.startswith("retrieval"):
        word = "段落" if facts.language == "zh" else "Paragraph "
        texts = {value: f"{word}{number}" for number, value in enumerate(values, 1)}
        return {"spelling": named(texts)}
    return {"backend": prompts.backend} if facts.metric == "edit_similarity" else {}
