"""RULER's tasks in the closed vocabulary of the embedded model.

Words are separated by spaces. A needle is ``note KEY 47 03 88 .``, an assignment is
``pass SOURCE NAME .`` (the source is a name or three two-digit numbers), and coded words stand
alone. Every value has three tokens, because the first answer token still comes from the
uncompressed prefill when the question is part of the compressed prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import ClassVar

from catekv.errors import UserError
from catekv.tasks.core.wording import Wording
from catekv.tasks.wording import vocabulary

_VALUE_TOKENS = 3


def _number(random: Random) -> str:
    return " ".join(f"{random.randrange(100):02d}" for _ in range(_VALUE_TOKENS))


def _draw(what: str, items: Sequence[str], count: int, random: Random) -> list[str]:
    if count > len(items):
        raise UserError(
            f"the small wording has {len(items)} {what}, {count} are needed: use a shorter length"
        )
    return random.sample(items, count)


class SmallWording(Wording):
    """The wording of the embedded model (see :mod:`catekv.models.embedded`)."""

    name: ClassVar[str] = "small-1"
    tasks: ClassVar[frozenset[str]] = frozenset(
        {
            "niah_single_1",
            "niah_single_2",
            "niah_multikey_1",
            "niah_multikey_2",
            "niah_multivalue",
            "niah_multiquery",
            "vt",
            "vt_dense",
            "fwe",
        }
    )
    filler_line: ClassVar[str] = (
        "the road is long . the rain is soft . the night is calm . some birds sing . so it goes ."
    )
    with_examples: ClassVar[bool] = False
    frequent_noise: ClassVar[str] = vocabulary.FREQUENT_NOISE
    #: answers are short here, so less of a short context is set aside than in RULER
    max_new_tokens: ClassVar[dict[str, int]] = {
        "niah_single_1": 16,
        "niah_single_2": 16,
        "niah_multikey_1": 16,
        "niah_multikey_2": 16,
        "niah_multivalue": 40,
        "niah_multiquery": 40,
        "vt": 16,
        "vt_dense": 16,
        "fwe": 16,
        "niah": 16,
        "synthetic": 16,
    }

    def keys(self, kind: str, count: int, random: Random) -> list[str]:
        if kind != "words":
            raise UserError(f"the small wording has no keys of kind {kind!r}, only 'words'")
        return _draw("names", vocabulary.names(), count, random)

    def values(self, kind: str, count: int, random: Random) -> list[str]:
        if kind != "numbers":
            raise UserError(f"the small wording has no values of kind {kind!r}, only 'numbers'")
        if count > 100**_VALUE_TOKENS:
            raise UserError(f"the small wording has {100**_VALUE_TOKENS} values, not {count}")
        found: dict[str, None] = {}
        while len(found) < count:
            found[_number(random)] = None
        return list(found)

    def needle(self, kind: str, key: str, value: str) -> str:
        return f"note {key} {value} ."

    def needle_instruction(self, kind: str, many: bool) -> str:
        return ""

    def needle_question(self, kind: str, keys: Sequence[str], values_per_key: int) -> str:
        """``ask K1 K2 ?``, or ``ask K all ?`` when a key has several values."""
        if values_per_key > 1:
            return "ask " + " ".join(f"{key} all" for key in keys) + " ?"
        return "ask " + " ".join(keys) + " ?"

    def needle_answer_prefix(self, kind: str, keys: Sequence[str], values_per_key: int) -> str:
        """The answer repeats the needles; in a list of a key's values it says ``all`` for ``note``.

        So the model can tell what it has listed from what the text says.
        """
        return f"all {keys[0]}" if values_per_key > 1 else f"note {keys[0]}"

    def essay(self, random: Random) -> Iterator[str]:
        """Sentences about a theme: each essay keeps returning to its own people and places."""
        theme = Theme(random)
        seen: set[str] = set()
        while True:
            sentence = theme.sentence(random)
            if sentence not in seen:
                seen.add(sentence)
                yield sentence

    def variables(self, count: int, random: Random, letters: int = 5) -> list[str]:
        return _draw("names", vocabulary.names(), count, random)

    def variable_value(self, random: Random) -> str:
        return _number(random)

    def assignment(self, name: str, source: str, first: bool) -> str:
        return f"pass {source} {name} ."

    def chain_instruction(self) -> str:
        return ""

    def chain_question(self, value: str) -> str:
        return f"trace {value} ?"

    def chain_answer_prefix(self, value: str, count: int) -> str:
        """The first assignment without its name; the answer lists the names of the chain."""
        return f"pass {value}"

    def coded_words(self, count: int, random: Random) -> list[str]:
        return _draw("coded words", vocabulary.coded_words(), count, random)

    def frequent_instruction(self) -> str:
        return ""

    def frequent_question(self) -> str:
        return "trace most ?"

    def frequent_answer_prefix(self) -> str:
        return "most"


class Theme:
    """The words an essay keeps using; sentences follow a small grammar with over 1e9 outcomes."""

    def __init__(self, random: Random) -> None:
        self.nouns = random.sample(vocabulary.NOUNS, 24)
        self.places = random.sample(vocabulary.PLACES, 8)
        self.verbs = random.sample(vocabulary.VERBS, 16)
        self.adjectives = random.sample(vocabulary.ADJECTIVES, 20)

    def sentence(self, random: Random) -> str:
        choose = random.choice
        form = random.randrange(6)
        subject = self._noun_phrase(random)
        place = f"{choose(vocabulary.PREPOSITIONS)} the {choose(self.places)}"
        if form == 0:
            return f"{subject} {choose(self.verbs)} {self._noun_phrase(random)} {place} ."
        if form == 1:
            return f"{subject} {choose(vocabulary.MOTIONS)} {choose(vocabulary.ADVERBS)} {place} ."
        if form == 2:
            first, second = random.sample(self.adjectives, 2)
            return f"the {choose(self.places)} was {first} and {second} that day ."
        if form == 3:
            return (
                f"{subject} {choose(self.verbs)} {self._noun_phrase(random)} "
                f"{choose(vocabulary.LINKS)} it {choose(vocabulary.MOTIONS)} {place} ."
            )
        if form == 4:
            return f"there was {self._noun_phrase(random)} {place} {choose(vocabulary.ADVERBS)} ."
        return (
            f"in the evening {subject} who {choose(self.verbs)} the {choose(self.nouns)} "
            f"{choose(vocabulary.MOTIONS)} {choose(vocabulary.ADVERBS)} ."
        )

    def _noun_phrase(self, random: Random) -> str:
        article, noun = random.choice(vocabulary.ARTICLES), random.choice(self.nouns)
        if random.random() < 0.5:
            return f"{article} {random.choice(self.adjectives)} {noun}"
        return f"{article} {noun}"
