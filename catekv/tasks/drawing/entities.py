"""The things of the synthetic world: persons, towns, firms, novels, and what can be said of them.

Names are invented. A thing's facts are drawn when they are first looked at.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from random import Random
from typing import Any

from catekv.tasks.drawing import words
from catekv.tasks.drawing.essay import place_name, plural, vocabulary

_FIRM_ENDINGS = ("Brothers", "Works", "Company", "Trading House", "Mills", "Shipping Line")
_STATES = ("Republic", "Kingdom", "Duchy", "Union")
_LANDMARKS = ("Tower", "Gate", "Hall", "Bridge", "Lighthouse", "Theatre")


@cache
def _world() -> dict[str, Any]:
    text = (files(__package__) / "vocabulary" / "world.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def description_of(kind: str) -> dict[str, Any]:
    """Introductions and relations of a kind of thing."""
    description: dict[str, Any] = _world()[kind]
    return description


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
            value = description_of(self.kind)["relations"][relation]["value"]
            self._facts[relation] = make(value, self.random)
        return self._facts[relation]

    @property
    def answers(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)


def capital(text: str) -> str:
    """The text with a capital at its start."""
    return text[:1].upper() + text[1:]


def _first_name(random: Random) -> str:
    return capital(words.syllable(random) + words.syllable(random) + random.choice("lnrst"))


def _person(random: Random, shared: str = "") -> Entity:
    family = shared or capital(words.noun(random))
    return Entity("person", f"{_first_name(random)} {family}", (), family, random)


def _city(random: Random, shared: str = "") -> Entity:
    name = f"{shared or place_name(random)}"
    if shared:
        name = f"{random.choice(('New', 'Upper', 'Lower', 'Old', 'Great', 'Little'))} {shared}"
    return Entity("city", name, (), "the town", random)


def _company(random: Random, shared: str = "") -> Entity:
    owner = shared or capital(words.adjective(random))
    return Entity("company", f"{owner} {random.choice(_FIRM_ENDINGS)}", (), "the firm", random)


def _book(random: Random, shared: str = "") -> Entity:
    first = shared or capital(random.choice(vocabulary("adjectives")))
    nature = capital(random.choice(vocabulary("nouns_nature")))
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
    "river": _plain("river", lambda random: capital(words.noun(random))),
    "ship": _plain("ship", lambda random: f"{_first_name(random)} {capital(words.noun(random))}"),
    "landmark": _plain(
        "landmark",
        lambda random: f"{capital(words.adjective(random))} {random.choice(_LANDMARKS)}",
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
