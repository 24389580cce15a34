"""Generated few-shot rows: solved examples, then one to solve. The unit is an example."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from catekv.tasks.drawing import chinese, words, world
from catekv.tasks.drawing.essay import vocabulary
from catekv.tasks.families.longbench.built_in.base import Draws, RowPlan
from catekv.tasks.families.longbench.rows import LongRow

if TYPE_CHECKING:
    from catekv.tasks.families.longbench.prompts import Prompts


class Example(NamedTuple):
    """``asked`` ends where the answer is to be written, ``gap`` separates the two."""

    asked: str
    gap: str
    answers: tuple[str, ...]


class ExamplePlan(RowPlan):
    """Examples of one kind, the last without its answer."""

    def __init__(
        self,
        prompts: Prompts,
        draws: Draws,
        example: Callable[[Random], Example],
        separator: str,
        all_classes: tuple[str, ...] = (),
    ) -> None:
        super().__init__(prompts)
        self._separator, self._classes, self._example = separator, all_classes, example
        self._asked = example(draws.random("asked"))
        self._random = draws.random("examples")
        self._solved: list[str] = []

    def row(self, units: int) -> LongRow:
        while len(self._solved) < units:
            one = self._example(self._random)
            self._solved.append(one.asked + one.gap + one.answers[0])
        context = self._separator.join(self._solved[:units])
        return self.made(context, self._asked.asked, self._asked.answers, self._classes)


#: kind of what a question asks for to its type
_TYPES = {
    "city": "Town",
    "year": "Year",
    "person": "Person",
    "company": "Company",
    "country": "Country",
    "river": "River",
    "ship": "Vessel",
    "landmark": "Building",
}
TYPES = tuple(_TYPES.values())


def typed_question(random: Random) -> Example:
    """A question with the type of its answer (trec)."""
    entity = world.make(random.choice(world.KINDS), random)
    question, relation = world.ask(entity, random)
    return Example(f"Question: {question}\nType:", " ", (_TYPES[entity.fact(relation).kind],))


def answered_passage(random: Random) -> Example:
    """A passage with a question and its answers (triviaqa)."""
    entity = world.make(random.choice(world.KINDS), random)
    question, relation = world.ask(entity, random)
    passage = world.paragraph(entity, random, (relation,))
    asked = f"Passage:\n{passage}\nQuestion:\n{question}\nAnswer:\n"
    return Example(asked, "", entity.fact(relation).answers)


#: conversations between {a} and {b}, and their summaries
_TALKS = (
    (
        ("{a}: are you free on {day}?", "{b}: yes, why?", "{a}: come and see my new {thing}!",
         "{b}: gladly"),
        "{b} will visit {a} on {day} to see the new {thing}.",
    ),
    (
        ("{a}: I cannot find my {thing}", "{b}: when did you see it last?", "{a}: on {day}",
         "{b}: I will help you look"),
        "{a} has lost a {thing} and {b} will help to look for it.",
    ),
    (
        ("{a}: the meeting is moved to {day}", "{b}: again?", "{a}: sorry. Do bring the {thing}",
         "{b}: all right, I will"),
        "The meeting is moved to {day} and {b} will bring the {thing}.",
    ),
    (
        ("{a}: how much did you pay for the {thing}?", "{b}: nothing, it was a present",
         "{a}: from whom?", "{b}: from my neighbour, on {day}"),
        "{b} got the {thing} as a present from a neighbour on {day}.",
    ),
)  # fmt: skip
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def summarised_talk(random: Random) -> Example:
    """A short conversation with a summary in one sentence (samsum)."""
    lines, summary = random.choice(_TALKS)
    first, second = (
        (words.syllable(random) + words.syllable(random)).capitalize() + end for end in "nr"
    )
    slots = {
        "a": first,
        "b": second,
        "day": random.choice(_DAYS),
        "thing": random.choice(vocabulary("nouns_things")),
    }
    talk = "\n".join(line.format(**slots) for line in lines)
    return Example(f"Dialogue: {talk}\nSummary:", " ", (summary.format(**slots),))


def classified_news(random: Random) -> Example:
    """A Chinese news text with its class (lsht)."""
    text, name = chinese.news(random)
    return Example(f"新闻内容\N{FULLWIDTH COLON}\n{text}\n类别\N{FULLWIDTH COLON}", "", (name,))
