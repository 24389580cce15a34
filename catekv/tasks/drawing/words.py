"""Pronounceable words and identifiers: distinct, and none of a kind part of another.

Words of one kind have one length, so that no word can hide inside another and a substring test
cannot find what is not there. All draws take the caller's generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import TypeVar

from catekv.errors import UserError
from catekv.files import read_text

Item = TypeVar("Item")

_ONSETS = "bdfgklmnprstvz"
_VOWELS = "aeiou"
_CODAS = "lmnrst"
_ADJECTIVE_ENDINGS = ("al", "ic", "an", "id", "en")
_NOUN_ENDINGS = ("or", "et", "um", "in", "el", "us")
#: how many different adjective-like, noun-like and common words can be drawn
ADJECTIVES = (len(_ONSETS) * len(_VOWELS)) ** 2 * len(_ONSETS) * len(_ADJECTIVE_ENDINGS)
NOUNS = len(_ONSETS) ** 2 * len(_VOWELS) * len(_CODAS) * len(_NOUN_ENDINGS)
COMMON_WORDS = (len(_ONSETS) * len(_VOWELS)) ** 3


def distinct(draw: Callable[[], Item], count: int, available: int, what: str) -> list[Item]:
    """``count`` different results of ``draw`` in the order of their first appearance.

    Raises:
        UserError: if there are fewer than ``count`` (``available`` in all).
    """
    if count > available:
        raise UserError(f"{count} different {what} were asked for, only {available} exist")
    found: dict[Item, None] = {}
    while len(found) < count:
        found[draw()] = None
    return list(found)


def syllable(random: Random) -> str:
    return random.choice(_ONSETS) + random.choice(_VOWELS)


def adjective(random: Random) -> str:
    """A word of seven letters that looks like an adjective, e.g. "toviric"."""
    stem = syllable(random) + syllable(random)
    return stem + random.choice(_ONSETS) + random.choice(_ADJECTIVE_ENDINGS)


def noun(random: Random) -> str:
    """A word of six letters that looks like a noun, e.g. "meltor"."""
    return (
        syllable(random)
        + random.choice(_CODAS)
        + random.choice(_ONSETS)
        + random.choice(_NOUN_ENDINGS)
    )


def key(random: Random) -> str:
    """An adjective and a noun joined by a hyphen."""
    return f"{adjective(random)}-{noun(random)}"


def common_word(random: Random) -> str:
    """Three open syllables, e.g. "mivora"."""
    return syllable(random) + syllable(random) + syllable(random)


def coded_word(random: Random) -> str:
    """Six random lower-case letters."""
    return "".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=6))


def number(random: Random) -> str:
    """Seven digits, 1,000,000 to 9,999,999."""
    return str(random.randint(1_000_000, 9_999_999))


def uuid(random: Random) -> str:
    """128 random bits in the form of a version 4 UUID."""
    bits = random.getrandbits(128) & ~(0xF << 76) & ~(0x3 << 62) | (0x4 << 76) | (0x2 << 62)
    text = f"{bits:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def variable(random: Random, letters: int) -> str:
    """A name of upper-case letters."""
    return "".join(random.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=letters))


@cache
def read_words(path: str) -> tuple[str, ...]:
    """The different words of a file with one word a line, or of all ``*.txt`` in a folder."""
    place = Path(path)
    files = sorted(place.glob("*.txt")) if place.is_dir() else [place]
    found: dict[str, None] = {}
    for file in files:
        try:
            text = read_text(file)
        except UserError as error:
            raise UserError(f"cannot read the word list: {error}") from error
        found.update(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not found:
        raise UserError(f"no word in {path}; expected a text file with one word a line")
    return tuple(found)


def list_name(path: str) -> str:
    """``file:NAME:`` and 16 digits of the SHA-256 of a list's words."""
    digest = hashlib.sha256("\n".join(read_words(path)).encode()).hexdigest()[:16]
    return f"file:{Path(path).name}:{digest}"


def sample(listed: Sequence[str], count: int, random: Random) -> list[str]:
    """``count`` different listed words. Raises ``UserError`` if there are fewer."""
    if count > len(listed):
        raise UserError(
            f"{count} different words were asked for, the word list has {len(listed)}; "
            "give a longer list or a shorter length"
        )
    return random.sample(listed, count)


def pair(listed: Sequence[str], random: Random) -> str:
    """Two different listed words joined by a hyphen."""
    return "-".join(random.sample(listed, min(2, len(listed))))
