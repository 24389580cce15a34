"""The closed vocabulary of the embedded model: every word it can read, in a fixed order.

The order defines the token ids, so it must never change for a published checkpoint. Names and
coded words are drawn once from fixed seeds. All names have five letters and all coded words six,
in different consonant-vowel patterns, so that no answer is contained in another word of its kind.
"""

# ruff: noqa: SIM905  (word lists read better as text)
from __future__ import annotations

from functools import cache
from random import Random

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>")
UNKNOWN, BEGIN, END, PADDING = range(4)

#: words that carry the structure of the tasks
STRUCTURE = (".", "?", "note", "ask", "all", "pass", "trace", "most")

#: the noise of the frequent-words task
FREQUENT_NOISE = "..."

NAME_COUNT = 1400
CODED_COUNT = 240

_CONSONANTS = "bdfgklmnprstvz"
_VOWELS = "aeiou"

ARTICLES = ("the", "a", "this", "every", "another")
ADJECTIVES = tuple(
    "old young quiet loud bright dark warm cold tall small heavy light slow quick gentle proud "
    "hungry tired clever simple narrow broad empty hidden golden silver wooden dusty rainy "
    "famous lonely patient careful curious friendly strange ordinary distant familiar "
    "long short green blue".split()
)
NOUNS = tuple(
    "farmer sailor baker teacher doctor painter singer hunter keeper miller weaver poet "
    "captain child mother father brother sister friend stranger king queen judge clerk "
    "horse dog cat goat sheep bird crow owl fox wolf bear fish mouse rabbit deer cow "
    "tree flower seed branch leaf stone rock cloud storm wind rain snow fire lamp "
    "boat ship cart wheel rope basket barrel hammer knife ladder mirror bell clock "
    "book letter map coin ring coat hat shoe blanket bread apple pear soup cheese honey "
    "song story dream promise secret lesson answer question plan".split()
)
PLACES = tuple(
    "river lake sea shore island valley hill mountain forest field garden orchard meadow road "
    "path bridge village town city harbour market mill tower castle house kitchen barn "
    "school church station inn cellar roof gate".split()
)
VERBS = tuple(
    "found lost carried followed watched painted sold bought mended broke lifted dropped "
    "praised feared loved forgot remembered described counted cleaned hid showed offered "
    "borrowed stole chased called greeted answered helped trusted".split()
)
MOTIONS = tuple("walked ran travelled returned wandered rested waited slept worked stayed".split())
PREPOSITIONS = ("near", "behind", "beyond", "inside", "above", "below", "beside", "around")
ADVERBS = tuple(
    "slowly quickly quietly often seldom always never again together alone today yesterday".split()
)
LINKS = ("and", "but", "while", "because", "before", "after", "until", "although")
OTHERS = tuple(
    "was is seemed grew with of to in on that who it there here so not very for from by "
    "morning evening night day winter summer spring autumn birds goes soft calm sing some".split()
)


def _syllables(pattern: str, random: Random) -> str:
    return "".join(random.choice(_CONSONANTS if kind == "c" else _VOWELS) for kind in pattern)


def _distinct(pattern: str, count: int, seed: str, taken: set[str]) -> tuple[str, ...]:
    random = Random(seed)
    words: dict[str, None] = {}
    while len(words) < count:
        word = _syllables(pattern, random)
        if word not in taken:
            words[word] = None
    return tuple(words)


@cache
def prose_words() -> tuple[str, ...]:
    """The words of the filler and of the essays, without repetition."""
    groups = (
        ARTICLES, ADJECTIVES, NOUNS, PLACES, VERBS, MOTIONS, PREPOSITIONS, ADVERBS, LINKS, OTHERS
    )  # fmt: skip
    return tuple(dict.fromkeys(word for group in groups for word in group))


@cache
def names() -> tuple[str, ...]:
    """Keys of needles and names of variables: five letters, consonant-vowel alternating."""
    return _distinct("cvcvc", NAME_COUNT, "catekv-small-names", set(prose_words()))


@cache
def coded_words() -> tuple[str, ...]:
    """Meaningless six-letter words of the frequent-words task."""
    return _distinct("cvccvc", CODED_COUNT, "catekv-small-coded", set(prose_words()))


def numerals() -> tuple[str, ...]:
    """Two-digit numbers; a value is three of them."""
    return tuple(f"{number:02d}" for number in range(100))


@cache
def words() -> tuple[str, ...]:
    """Every token in the order of its id."""
    return (
        *SPECIAL_TOKENS, *STRUCTURE, FREQUENT_NOISE, *numerals(), *prose_words(), *coded_words(),
        *names(),
    )  # fmt: skip


@cache
def index() -> dict[str, int]:
    """Token id of every word."""
    table = {word: position for position, word in enumerate(words())}
    assert len(table) == len(words()), "the vocabulary has a word twice"
    return table


def encode(text: str) -> list[int]:
    """Token ids of a text of known words, without special tokens. ``KeyError`` for others."""
    table = index()
    return [table[word] for word in text.split()]
