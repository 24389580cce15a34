"""A synthetic world to ask questions about: persons, towns, firms, novels and their relations.

A paragraph states four to six facts of one entity. A question asks for one fact (``qa_1``) or for a
fact of an entity that is itself only described (``qa_2``: "the town where ... was born"). Names are
invented, so nothing can be answered without the text, and a distractor that happens to hold the
answer is thrown away.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from random import Random
from typing import Any

from catekv.tasks.generators import words
from catekv.tasks.generators.essay import place_name, plural, vocabulary, with_articles
from catekv.tasks.randomness import generator

_FIRM_ENDINGS = ("Brothers", "Works", "Company", "Trading House", "Mills", "Shipping Line")
_STATES = ("Republic", "Kingdom", "Duchy", "Union")
_LANDMARKS = ("Tower", "Gate", "Hall", "Bridge", "Lighthouse", "Theatre")
_FACTS = (4, 6)
#: draws for one thing that is wanted before another question is drawn
_TRIES = 50


@cache
def _world() -> dict[str, Any]:
    text = (files(__package__) / "vocabulary" / "world.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


@dataclass
class Entity:
    """One thing of a kind with a name; its facts are drawn when they are first looked at."""

    kind: str
    name: str
    #: other ways to name it in an answer
    aliases: tuple[str, ...]
    short: str
    random: Random = field(repr=False)
    _facts: dict[str, Entity] = field(default_factory=dict, repr=False)

    def fact(self, relation: str) -> Entity:
        if relation not in self._facts:
            value = _world()[self.kind]["relations"][relation]["value"]
            self._facts[relation] = make(value, self.random)
        return self._facts[relation]

    @property
    def answers(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _first_name(random: Random) -> str:
    return _capital(words.syllable(random) + words.syllable(random) + random.choice("lnrst"))


def _person(random: Random, shared: str = "") -> Entity:
    family = shared or _capital(words.noun(random))
    return Entity("person", f"{_first_name(random)} {family}", (), family, random)


def _city(random: Random, shared: str = "") -> Entity:
    name = f"{shared or place_name(random)}"
    if shared:
        name = f"{random.choice(('New', 'Upper', 'Lower', 'Old', 'Great', 'Little'))} {shared}"
    return Entity("city", name, (), "the town", random)


def _company(random: Random, shared: str = "") -> Entity:
    owner = shared or _capital(words.adjective(random))
    return Entity("company", f"{owner} {random.choice(_FIRM_ENDINGS)}", (), "the firm", random)


def _book(random: Random, shared: str = "") -> Entity:
    first = shared or _capital(random.choice(vocabulary("adjectives")))
    nature = _capital(random.choice(vocabulary("nouns_nature")))
    place = place_name(random)
    return Entity("book", f"The {first} {nature} of {place}", (), "the novel", random)


def _country(random: Random) -> Entity:
    place = place_name(random)
    return Entity("country", f"the {random.choice(_STATES)} of {place}", (place,), place, random)


def _plain(kind: str, draw: Callable[[Random], str]) -> Callable[[Random], Entity]:
    def make_plain(random: Random) -> Entity:
        name = draw(random)
        return Entity(kind, name, (), name, random)

    return make_plain


def _listed(name: str) -> Callable[[Random], str]:
    return lambda random: random.choice(vocabulary(name))


_MAKERS: dict[str, Callable[..., Entity]] = {
    "person": _person,
    "city": _city,
    "company": _company,
    "book": _book,
    "country": _country,
    "year": _plain("year", lambda random: str(random.randint(1000, 1949))),
    "river": _plain("river", lambda random: _capital(words.noun(random))),
    "ship": _plain("ship", lambda random: f"{_first_name(random)} {_capital(words.noun(random))}"),
    "landmark": _plain(
        "landmark",
        lambda random: f"{_capital(words.adjective(random))} {random.choice(_LANDMARKS)}",
    ),
    "hobby": _plain("hobby", lambda random: f"{random.choice(vocabulary('nouns_nature'))} walks"),
    "goods": _plain("goods", lambda random: plural(random.choice(vocabulary("nouns_things")))),
    "emblem": _plain("emblem", _listed("nouns_nature")),
    "idea": _plain("idea", _listed("nouns_ideas")),
}
#: kinds that have paragraphs of their own
KINDS = ("person", "city", "company", "book")


def make(kind: str, random: Random, shared: str = "") -> Entity:
    """A new entity; ``shared`` is a part of another's name that this one is to carry too."""
    return _MAKERS[kind](random, shared) if kind in KINDS else _MAKERS[kind](random)


def shared_part(entity: Entity) -> str:
    """The part of a name that distractors repeat: family name, town, owner, first adjective."""
    parts = entity.name.split(" ")
    return parts[{"person": -1, "city": -1, "company": 0, "book": 1}[entity.kind]]


def paragraph(entity: Entity, random: Random, wanted: tuple[str, ...] = ()) -> str:
    """Title, newline, an introduction and four to six facts in drawn order, ``wanted`` included."""
    description = _world()[entity.kind]
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
    text = " ".join(_capital(sentence) for sentence in sentences)
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
        random.choice(_world()[entity.kind]["relations"][relation]["questions"]).format(s=subject)
    )


def ask(entity: Entity, random: Random) -> tuple[str, str]:
    """A question about one fact of an entity, and the name of the relation that it asks for."""
    relation = random.choice(_answerable(entity.kind))
    return _ask(entity, relation, random, entity.name), relation


def statements(entity: Entity, count: int, random: Random) -> list[tuple[str, str]]:
    """Up to ``count`` facts of an entity, each in two different sentences that name it."""
    relations = _world()[entity.kind]["relations"]
    said: list[tuple[str, str]] = []
    for relation in random.sample(list(relations), min(count, len(relations))):
        frames = random.sample(relations[relation]["statements"], 2)
        value = entity.fact(relation).name
        one, other = (_capital(frame.format(s=entity.name, v=value)) for frame in frames)
        said.append((one, other))
    return said


def _answerable(kind: str) -> list[str]:
    relations = _world()[kind]["relations"]
    return [name for name, relation in relations.items() if relation["questions"]]


def _bridges(kind: str) -> list[str]:
    relations = _world()[kind]["relations"]
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
    reference = _world()[first.kind]["relations"][bridge]["reference"].format(s=first.name)
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
