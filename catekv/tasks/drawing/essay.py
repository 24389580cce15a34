"""Prose from a seeded grammar, and prose from files that the user has.

The grammar joins 80 clause frames with 30 openers and 14 closers (36,000 sentence frames) and fills
them from about 2,800 content words. No sentence comes twice out of one generator. The sentences
mean little, but they are grammatical, different from each other and hold neither digits nor
anything that looks like a needle.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from random import Random

from catekv.errors import UserError
from catekv.files import read_text
from catekv.tasks.drawing import words

_SEASONS = ("spring", "summer", "autumn", "winter")
_MEALS = ("breakfast", "lunch", "dinner", "supper")
#: verbs that double their last letter
_DOUBLED = frozenset(
    ("admit", "control", "drag", "drop", "equip", "permit", "plan", "submit", "trap", "wrap")
)
_SLOT = re.compile(r"\{(\w+)\}")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")
#: words written with a vowel and spoken with a consonant
_SPOKEN_CONSONANT = re.compile(r"\b([Aa])n (?=(?:unique|united|useful|useless|usual|ewe|yew)\b)")

Fill = Callable[[Random], str]


@cache
def vocabulary(name: str) -> tuple[str, ...]:
    """The entries of one list of ``vocabulary/``: frames by line, words by white space."""
    text = (files(__package__) / "vocabulary" / f"{name}.txt").read_text(encoding="utf-8")
    if name in ("frames", "openers", "closers"):
        return tuple(text.splitlines())
    return tuple(dict.fromkeys(text.split()))


def past_tense(verb: str) -> str:
    """The past tense of a regular verb."""
    if verb in _DOUBLED:
        return verb + verb[-1] + "ed"
    if verb.endswith("e"):
        return verb + "d"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ied"
    return verb + "ed"


def plural(noun: str) -> str:
    """The plural of a regular noun."""
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "z", "ch", "sh")) else "s")


def with_articles(text: str) -> str:
    """The text with "a" turned into "an" where a vowel sound follows."""
    return _SPOKEN_CONSONANT.sub(r"\1 ", _ARTICLE.sub(r"\1n ", text))


def place_name(random: Random) -> str:
    """A name for a place, e.g. "Tolvermin"."""
    return (words.syllable(random) + words.noun(random)).capitalize()


def _choice(entries: tuple[str, ...]) -> Fill:
    size = len(entries)
    return lambda random: entries[int(random.random() * size)]


@cache
def _slots() -> dict[str, Fill]:
    past = tuple(past_tense(verb) for verb in vocabulary("verbs"))
    return {
        "person": _choice(vocabulary("nouns_people")),
        "thing": _choice(vocabulary("nouns_things")),
        "nature": _choice(vocabulary("nouns_nature")),
        "idea": _choice(vocabulary("nouns_ideas")),
        "adj": _choice(vocabulary("adjectives")),
        "adv": _choice(vocabulary("adverbs")),
        "past": _choice(past),
        "season": _choice(_SEASONS),
        "meal": _choice(_MEALS),
        "place": place_name,
    }


@cache
def _parsed(name: str) -> tuple[tuple[str | Fill, ...], ...]:
    """Every frame of a list as alternating texts and slots."""
    slots = _slots()
    return tuple(
        tuple(slots[part] if i % 2 else part for i, part in enumerate(_SLOT.split(frame)))
        for frame in vocabulary(name)
    )


def _fill(frame: tuple[str | Fill, ...], random: Random) -> str:
    return "".join(part if isinstance(part, str) else part(random) for part in frame)


def sentence(random: Random) -> str:
    """One sentence; about a third has an opener and a third a closer."""
    frames = _parsed("frames")
    text = _fill(frames[int(random.random() * len(frames))], random)
    kind = random.random()
    if kind < 0.35:
        text = f"{_fill(random.choice(_parsed('openers')), random)}, {text}"
    elif kind < 0.65:
        text = f"{text} {_fill(random.choice(_parsed('closers')), random)}"
    text = with_articles(text)
    return text[0].upper() + text[1:] + "."


def essay(random: Random) -> Iterator[str]:
    """Endless prose, one sentence at a time, none twice."""
    seen: set[str] = set()
    while True:
        text = sentence(random)
        if text not in seen:
            seen.add(text)
            yield text


_SENTENCE_END = re.compile(
    "[.!?][\"')\\]\N{RIGHT DOUBLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}]*"
    "\\s+(?=[\"'(\\[\N{LEFT DOUBLE QUOTATION MARK}\N{LEFT SINGLE QUOTATION MARK}]?[A-Z0-9])"
)
#: what may stand before the first letter of a word
_OPENING = "\"'([\N{LEFT DOUBLE QUOTATION MARK}\N{LEFT SINGLE QUOTATION MARK}"


def split_sentences(text: str) -> list[str]:
    """Sentences of a text, white space squeezed.

    Known abbreviations (``vocabulary/abbreviations.txt``) and initials do not end a sentence.
    """
    abbreviations = vocabulary("abbreviations")
    text = " ".join(text.split())
    sentences: list[str] = []
    start = 0
    for match in _SENTENCE_END.finditer(text):
        word = text[start : match.start()].rsplit(" ", 1)[-1].lstrip(_OPENING).lower()
        if match.group()[0] == "." and (
            word in abbreviations or (len(word) == 1 and word.isalpha() and word != "i")
        ):
            continue
        sentences.append(text[start : match.end()].strip())
        start = match.end()
    rest = text[start:].strip()
    return [*sentences, rest] if rest else sentences


def _read_text(file: Path) -> str:
    text = read_text(file)
    if file.suffix == ".json":
        content = json.loads(text)
        if isinstance(content, dict) and isinstance(content.get("text"), str):
            return str(content["text"])
        raise UserError(f'{file} holds no essays; expected {{"text": "..."}} or plain text files')
    return text


def _sources(path: str) -> list[Path]:
    """The files of a folder in sorted order, or the one file."""
    place = Path(path)
    if not place.is_dir():
        return [place]
    return sorted(file for file in place.rglob("*") if file.suffix in (".txt", ".md", ".json"))


@cache
def file_sentences(path: str) -> tuple[str, ...]:
    """All sentences of a file, or of a folder's files in sorted order.

    Raises:
        UserError: unreadable, or without any prose.
    """
    try:
        texts = [_read_text(file) for file in _sources(path)]
    except (UserError, OSError, json.JSONDecodeError) as error:
        raise UserError(f"cannot read essays from {path}: {error}") from error
    sentences = tuple(sentence for text in texts for sentence in split_sentences(text))
    if not sentences:
        raise UserError(f"no prose in {path}; expected a text file, a folder of them or JSON")
    return sentences


@cache
def prose_name(path: str) -> str:
    """``file:NAME:`` and 16 digits of the SHA-256 of a file's or folder's sentences."""
    digest = hashlib.sha256("\n".join(file_sentences(path)).encode()).hexdigest()[:16]
    return f"file:{Path(path).name}:{digest}"


def essay_from_path(path: str, random: Random) -> Iterator[str]:
    """Sentences of a file or folder (sorted), from a drawn place on, in rounds without end.

    Starting somewhere else in every sample keeps them different; RULER always starts at the first
    word. Accepts text files, folders of text files, and ``{"text": ...}`` JSON (Paul Graham).
    """
    sentences = file_sentences(path)
    start = random.randrange(len(sentences))
    while True:
        yield from sentences[start:]
        start, sentences = 0, file_sentences(path)
