"""Generated rows to summarise: what the summary must say stands between other sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import TYPE_CHECKING

from catekv.tasks.drawing import chinese, stories, words, world
from catekv.tasks.drawing.essay import essay, with_articles
from catekv.tasks.families.longbench.built_in.base import Draws, Pile, RowPlan
from catekv.tasks.families.longbench.rows import LongRow

if TYPE_CHECKING:
    from catekv.tasks.families.longbench.prompts import Prompts

_FACTS = 4


class ReportPlan(RowPlan):
    """A long text that reports facts; the summary says them again. The unit is a word."""

    def __init__(self, prompts: Prompts, draws: Draws) -> None:
        super().__init__(prompts)
        self._reported = stories.reported(draws.seed("report"), _FACTS)

    def row(self, units: int) -> LongRow:
        text, summary = self._reported.story.text(units), " ".join(self._reported.summary)
        return self.made(text, "", [summary])


class NewsPlan(RowPlan):
    """Three articles with the same facts, each in prose of its own; the unit is a sentence."""

    def __init__(self, prompts: Prompts, draws: Draws) -> None:
        super().__init__(prompts)
        said, self._summary = _facts(draws, _FACTS - 1)
        self._articles = [
            Pile(said, essay(draws.random(f"prose {number}")), draws.random(f"places {number}"))
            for number in range(3)
        ]
        self.minimum = 3

    def row(self, units: int) -> LongRow:
        texts = [
            f"Passage {number + 1}:\n" + " ".join(pile.texts((units + number) // 3))
            for number, pile in enumerate(self._articles)
        ]
        return self.made("\n\n".join(texts), "", [self._summary])


class MeetingPlan(RowPlan):
    """What people say in turn; the unit is one turn without anything to remember.

    ``asks``: the row asks for what was said about one thing (qmsum), else for everything that
    matters (vcsum).
    """

    def __init__(self, prompts: Prompts, draws: Draws, asks: bool) -> None:
        super().__init__(prompts)
        random = draws.random("speakers")
        self._asked = ""
        others: Iterator[str]
        if prompts.facts.language == "zh":
            said = chinese.statements(draws.random("facts"), _FACTS)
            lines, self._summary = [one for one, _ in said], "".join(other for _, other in said)
            others = chinese.prose(draws.random("prose"))
            speakers = [f"讲者{number}\N{FULLWIDTH COLON}" for number in range(1, 5)]
        else:
            lines, self._summary, subject = _about(draws)
            others = essay(draws.random("prose"))
            speakers = [f"{_name(random)}: " for _ in range(4)]
            if asks:
                self._asked = f"What was said about {subject}?"
        spoken = _spoken(speakers, random)
        self._pile = Pile(
            [spoken(line) for line in lines], map(spoken, others), draws.random("places"),
            ordered=True,
        )  # fmt: skip

    def row(self, units: int) -> LongRow:
        return self.made("\n".join(self._pile.texts(units)), self._asked, [self._summary])


def _spoken(speakers: list[str], random: Random) -> Callable[[str], str]:
    return lambda text: random.choice(speakers) + text


def _name(random: Random) -> str:
    return (words.syllable(random) + words.syllable(random) + random.choice("lnrst")).capitalize()


def _facts(draws: Draws, count: int) -> tuple[list[str], str]:
    """Facts of one entity as sentences, and again as a summary."""
    lines, summary, _ = _about(draws, count)
    return lines, summary


def _about(draws: Draws, count: int = 2) -> tuple[list[str], str, str]:
    random = draws.random("facts")
    entity = world.make(random.choice(world.KINDS), random)
    said = world.statements(entity, count, random)
    lines = [with_articles(one) for one, _ in said]
    return lines, " ".join(with_articles(other) for _, other in said), entity.name
