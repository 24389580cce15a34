"""Generated rows that ask about a fact, a paragraph or a number of paragraphs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from catekv.tasks.drawing import chinese, stories, world
from catekv.tasks.families.longbench.built_in.base import Draws, Pile, RowPlan
from catekv.tasks.families.longbench.rows import LongRow

if TYPE_CHECKING:
    from catekv.tasks.families.longbench.prompts import Prompts


class StoryPlan(RowPlan):
    """A paragraph with the answer in a long prose text; the unit is a word."""

    def __init__(self, prompts: Prompts, draws: Draws) -> None:
        super().__init__(prompts)
        self._asked = stories.asked(draws.seed("story"), near=1)

    def row(self, units: int) -> LongRow:
        asked = self._asked
        return self.made(asked.story.text(units), asked.question, asked.answers)


class PassagePlan(RowPlan):
    """Passages, some of which hold the answer; the unit is a passage without it.

    ``label`` numbers them ("" leaves them without a number).
    """

    def __init__(
        self, prompts: Prompts, question: world.Question, others: Iterator[str], label: str,
        draws: Draws,
    ) -> None:  # fmt: skip
        super().__init__(prompts)
        self._question, self._label = question, label
        near = question.near
        self._pile = Pile(question.gold, others, draws.random("places"), near)
        self.minimum = 0

    def row(self, units: int) -> LongRow:
        texts = self._pile.texts(units)
        if self._label:
            texts = [self._label.format(number) + text for number, text in enumerate(texts, 1)]
        return self.made("\n\n".join(texts), self._question.text, self._question.outputs)


class RetrievalPlan(RowPlan):
    """Numbered paragraphs, of which one is said again in other words; the unit is a paragraph."""

    def __init__(self, prompts: Prompts, draws: Draws) -> None:
        super().__init__(prompts)
        random = draws.random("described")
        if prompts.facts.language == "zh":
            self._text, self._summary = chinese.described(random)
            others = chinese.others(draws.seed("others"), (self._text,))
            self._label, self._answer, self._colon = "段落{}", "段落{}", "\N{FULLWIDTH COLON}"
        else:
            self._text, self._summary = _described(draws)
            others = _bodies(world.others(draws.seed("others"), (self._text,)))
            self._label = self._answer = "Paragraph {}"
            self._colon = ": "
        self._pile = Pile([self._text], others, draws.random("places"))
        self.minimum = 1

    def row(self, units: int) -> LongRow:
        texts = self._pile.texts(units)
        number = texts.index(self._text) + 1
        numbered = [
            f"{self._label.format(place)}{self._colon}{text}" for place, text in enumerate(texts, 1)
        ]
        return self.made("\n\n".join(numbered), self._summary, [self._answer.format(number)])


def _described(draws: Draws) -> tuple[str, str]:
    """Facts of one entity in a paragraph, and again in other sentences."""
    random = draws.random("entity")
    entity = world.make(random.choice(world.KINDS), random)
    said = world.statements(entity, 5, random)
    return " ".join(one for one, _ in said), " ".join(other for _, other in said)


def _bodies(paragraphs: Iterator[str]) -> Iterator[str]:
    """Paragraphs without their title line."""
    return (text.split("\n", 1)[1] for text in paragraphs)


class CountPlan(RowPlan):
    """Paragraphs, some of them copies of others; the unit is a paragraph."""

    #: about so many paragraphs repeat an earlier one
    REPEATED = 0.35

    def __init__(self, prompts: Prompts, draws: Draws) -> None:
        super().__init__(prompts)
        self._source = _bodies(world.others(draws.seed("paragraphs"), ("\0",)))
        self._random = draws.random("copies")
        self._drawn: list[tuple[float, str]] = []
        self._different: list[str] = []
        self.minimum = 2

    def row(self, units: int) -> LongRow:
        while len(self._drawn) < units:
            if self._different and self._random.random() < self.REPEATED:
                text = self._random.choice(self._different)
            else:
                text = next(self._source)
                self._different.append(text)
            self._drawn.append((self._random.random(), text))
        texts = [text for _, text in sorted(self._drawn[:units])]
        numbered = [f"Paragraph {number}: {text}" for number, text in enumerate(texts, 1)]
        return self.made("\n\n".join(numbered), "", [str(len(set(texts)))])
