"""A synthetic world to ask questions about: persons, towns, firms, novels and their relations.

A paragraph states four to six facts of one entity. A question asks for one fact (``qa_1``) or for a
fact of an entity that is itself only described (``qa_2``: "the town where ... was born"). Names are
invented, so nothing can be answered without the text, and a distractor that happens to hold the
answer is thrown away.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from catekv.tasks.core.randomness import generator
from catekv.tasks.drawing.entities import KINDS, Entity, capital, description_of, make
from catekv.tasks.drawing.essay import vocabulary, with_articles

__all__ = [
    "KINDS",
    "Entity",
    "Question",
    "ask",
    "holds_any",
    "make",
    "others",
    "paragraph",
    "question",
    "shared_part",
    "statements",
]

_FACTS = (4, 6)
#: draws for one thing that is wanted before another question is drawn
_TRIES = 50


def shared_part(entity: Entity) -> str:
    """The part of a name that distractors repeat: family name, town, owner, first adjective."""
    parts = entity.name.split(" ")
    return parts[{"person": -1, "city": -1, "company": 0, "book": 1}[entity.kind]]


def paragraph(entity: Entity, random: Random, wanted: tuple[str, ...] = ()) -> str:
    """Title, newline, an introduction and four to six facts in drawn order, ``wanted`` included."""
    description = description_of(entity.kind)
    relations = list(description["relations"])
    others = [name for name in relations if name not in wanted]
    count = min(random.randint(*_FACTS), len(relations)) - len(wanted)
    chosen = [*wanted, *random.sample(others, max(0, count))]
    random.shuffle(chosen)
    introduction = random.choice(description["introductions"]).format(
        s=entity.name,
        profession=random.choice(vocabulary("nouns_people")),
        thing=random.choice(vocabulary("nouns_things")),
        adj=random.choice(("old", "important", "unusual", "honourable", "eminent")),
        idea=random.choice(vocabulary("nouns_ideas")),
    )
    sentences = [introduction]
    for relation in chosen:
        statement = random.choice(description["relations"][relation]["statements"])
        subject = entity.name if random.random() < 0.4 else entity.short
        sentences.append(statement.format(s=subject, v=entity.fact(relation).name))
    text = " ".join(capital(sentence) for sentence in sentences)
    return f"{entity.name}\n{with_articles(text)}"


@dataclass(frozen=True)
class Question:
    """A question, its answers, the paragraphs that hold them and the ones that look alike."""

    text: str
    outputs: tuple[str, ...]
    gold: tuple[str, ...]
    near: tuple[str, ...]


def holds_any(text: str, answers: tuple[str, ...]) -> bool:
    """Whether any answer occurs in the text, case ignored."""
    lowered = text.lower()
    return any(answer.lower() in lowered for answer in answers)


def _ask(entity: Entity, relation: str, random: Random, subject: str) -> str:
    return str(
        random.choice(description_of(entity.kind)["relations"][relation]["questions"]).format(
            s=subject
        )
    )


def ask(entity: Entity, random: Random) -> tuple[str, str]:
    """A question about one fact of an entity, and the name of the relation that it asks for."""
    relation = random.choice(_answerable(entity.kind))
    return _ask(entity, relation, random, entity.name), relation


def statements(entity: Entity, count: int, random: Random) -> list[tuple[str, str]]:
    """Up to ``count`` facts of an entity, each in two different sentences that name it."""
    relations = description_of(entity.kind)["relations"]
    said: list[tuple[str, str]] = []
    for relation in random.sample(list(relations), min(count, len(relations))):
        frames = random.sample(relations[relation]["statements"], 2)
        value = entity.fact(relation).name
        one, other = (capital(frame.format(s=entity.name, v=value)) for frame in frames)
        said.append((one, other))
    return said


def _answerable(kind: str) -> list[str]:
    relations = description_of(kind)["relations"]
    return [name for name, relation in relations.items() if relation["questions"]]


def _bridges(kind: str) -> list[str]:
    relations = description_of(kind)["relations"]
    return [name for name, relation in relations.items() if "reference" in relation]


def _single(random: Random) -> tuple[str, list[tuple[Entity, str]]]:
    entity = make(random.choice(KINDS), random)
    text, relation = ask(entity, random)
    return text, [(entity, relation)]


def _double(random: Random) -> tuple[str, list[tuple[Entity, str]]]:
    first = make(random.choice(KINDS), random)
    bridge = random.choice(_bridges(first.kind))
    second = first.fact(bridge)
    relation = random.choice(_answerable(second.kind))
    reference = description_of(first.kind)["relations"][bridge]["reference"].format(s=first.name)
    return _ask(second, relation, random, reference), [(first, bridge), (second, relation)]


def _look_alikes(
    steps: list[tuple[Entity, str]], answers: tuple[str, ...], count: int, random: Random
) -> tuple[str, ...] | None:
    """Paragraphs about namesakes without the answer; None if they cannot be had.

    An answer can be too common to be kept out.
    """
    near: list[str] = []
    for _ in range(_TRIES * count):
        subject, asked = steps[len(near) % len(steps)]
        other = make(subject.kind, random, shared_part(subject))
        part = paragraph(other, random, (asked,))
        if other.name != subject.name and not holds_any(part, answers):
            near.append(part)
        if len(near) == count:
            return tuple(near)
    return None


def question(seed: tuple[object, ...], hops: int) -> Question:
    """Draw a question with its own paragraphs.

    Args:
        seed: everything drawn follows from it.
        hops: 1 with three look-alikes, or 2 with eight.
    """
    for attempt in range(100):
        random = generator(*seed, attempt)
        text, steps = _single(random) if hops == 1 else _double(random)
        entity, relation = steps[-1]
        answers = entity.fact(relation).answers
        gold = [paragraph(subject, random, (asked,)) for subject, asked in steps]
        if holds_any(text, answers) or any(holds_any(part, answers) for part in gold[:-1]):
            continue
        near = _look_alikes(steps, answers, 3 if hops == 1 else 8, random)
        if near is not None:
            return Question(text, answers, tuple(gold), near)
    raise AssertionError(f"no question without an accidental answer for seed {seed}")


def others(seed: tuple[object, ...], answers: tuple[str, ...]) -> Iterator[str]:
    """Endless further paragraphs, none of which holds an answer."""
    random = generator(*seed)
    while True:
        part = paragraph(make(random.choice(KINDS), random), random)
        if not holds_any(part, answers):
            yield part
