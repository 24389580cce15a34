"""Long texts of any length that hide what a question or a summary is about.

A story's unit is one word of prose; what it hides stays at the same relative places while it grows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from catekv.tasks.core.randomness import generator
from catekv.tasks.drawing import world
from catekv.tasks.drawing.essay import essay, with_articles
from catekv.tasks.wording.hay import Prose, insert

#: sentences of prose between two line breaks
_PARAGRAPH = 5


class Story:
    """Prose with given texts hidden in it, each at a relative position (0 start, 1 end)."""

    def __init__(
        self, source: Iterator[str], hidden: Sequence[tuple[float, str]], *, block: bool = True
    ) -> None:
        """``block``: what is hidden stands in paragraphs of its own, not between sentences."""
        self._prose = Prose(source)
        self._hidden = list(hidden)
        self._block = block

    def text(self, words: int) -> str:
        """The story with so many words of prose."""
        sentences = self._prose.sentences(words)
        if not self._block:
            return _paragraphs(insert(sentences, self._hidden))
        starts = range(0, len(sentences), _PARAGRAPH)
        blocks = [" ".join(sentences[start : start + _PARAGRAPH]) for start in starts]
        return "\n\n".join(insert(blocks, self._hidden))


def _paragraphs(sentences: Sequence[str]) -> str:
    starts = range(0, len(sentences), _PARAGRAPH)
    return "\n\n".join(" ".join(sentences[start : start + _PARAGRAPH]) for start in starts)


@dataclass(frozen=True)
class Asked:
    """A story and a question about it; ``wrong`` are answers of the same kind that are not true."""

    story: Story
    question: str
    answers: tuple[str, ...]
    wrong: tuple[str, ...] = ()


def _places(random: Random, texts: Sequence[str]) -> list[tuple[float, str]]:
    return [(random.random(), text) for text in texts]


def asked(seed: tuple[object, ...], hops: int = 1, near: int = 3) -> Asked:
    """A question about the synthetic world whose paragraphs are hidden in prose.

    Args:
        seed: everything drawn follows from it.
        hops: 1, or 2 for a question over a bridge.
        near: paragraphs that look alike and hold no answer.
    """
    question = world.question((*seed, "question"), hops)
    random = generator(*seed, "places")
    hidden = _places(random, [*question.gold, *question.near[:near]])
    story = Story(essay(generator(*seed, "prose")), hidden)
    return Asked(story, question.text, question.outputs)


class _Fact(NamedTuple):
    """A question with one right and three wrong answers, and the paragraph that tells."""

    question: str
    right: str
    wrong: tuple[str, ...]
    paragraph: str
    random: Random


def _fact(seed: tuple[object, ...]) -> _Fact:
    for attempt in range(100):
        random = generator(*seed, "choice", attempt)
        entity = world.make(random.choice(world.KINDS), random)
        text, relation = world.ask(entity, random)
        right = entity.fact(relation)
        wrong = list(dict.fromkeys(world.make(right.kind, random).name for _ in range(6)))
        wrong = [name for name in wrong if name.lower() not in right.name.lower()][:3]
        gold = world.paragraph(entity, random, (relation,))
        if len(wrong) == 3 and not world.holds_any(gold, tuple(wrong)):
            return _Fact(text, right.name, tuple(wrong), gold, random)
    raise AssertionError(f"no four different answers for seed {seed}")


def choice(seed: tuple[object, ...]) -> Asked:
    """As :func:`asked`, with three wrong answers of the same kind."""
    fact = _fact(seed)
    story = Story(essay(generator(*seed, "prose")), [(fact.random.random(), fact.paragraph)])
    return Asked(story, fact.question, (fact.right,), fact.wrong)


def several(seed: tuple[object, ...], count: int) -> list[Asked]:
    """``count`` questions with wrong answers about one story, each asked only where it is told."""
    facts: list[_Fact] = []
    attempt = 0
    while len(facts) < count:
        fact = _fact((*seed, "fact", attempt))
        attempt += 1
        told = [(fact.right, other.paragraph) for other in facts]
        told += [(other.right, fact.paragraph) for other in facts]
        if not any(world.holds_any(text, (right,)) for right, text in told):
            facts.append(fact)
    random = generator(*seed, "places")
    hidden = _places(random, [fact.paragraph for fact in facts])
    story = Story(essay(generator(*seed, "prose")), hidden)
    return [Asked(story, fact.question, (fact.right,), fact.wrong) for fact in facts]


@dataclass(frozen=True)
class Reported:
    """A story that reports on something; ``summary`` says the reported facts, one a sentence.

    ``hidden`` are the sentences that report them, with their places.
    """

    story: Story
    subject: str
    summary: tuple[str, ...]
    hidden: tuple[tuple[float, str], ...]


def reported(seed: tuple[object, ...], facts: int) -> Reported:
    """``facts`` facts of as many entities as they need, strewn over prose sentence by sentence.

    The summary states every fact again, in words of its own where the fact has several.
    """
    random = generator(*seed, "facts")
    said: list[str] = []
    again: list[str] = []
    subject = ""
    while len(said) < facts:
        entity = world.make(random.choice(world.KINDS), random)
        subject = subject or entity.name
        for one, other in world.statements(entity, facts - len(said), random):
            said.append(with_articles(one))
            again.append(with_articles(other))
    positions = sorted(random.random() for _ in said)
    hidden = list(zip(positions, said, strict=True))
    story = Story(essay(generator(*seed, "prose")), hidden, block=False)
    return Reported(story, subject, tuple(again), tuple(hidden))
