"""Hay in countable units: filler sentences and prose cut at a word."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence

_SENTENCE_GAP = re.compile(r"(?<=[.!?])\s+")
#: sentences on one line of filler
LINE = 5


class Filler:
    """A line of short sentences again and again; one unit is one sentence."""

    def __init__(self, line: str) -> None:
        self._line = line
        self._sentences = [part for part in _SENTENCE_GAP.split(line.strip()) if part]

    def lines(self, units: int) -> list[str]:
        whole, rest = divmod(units, len(self._sentences))
        lines = [self._line] * whole
        if rest:
            lines.append(" ".join(self._sentences[:rest]))
        return lines

    def words(self, count: int) -> str:
        """So many words of filler on one line, the last sentence cut."""
        sentences: list[str] = []
        while count > 0:
            sentence = self._sentences[len(sentences) % len(self._sentences)]
            size = sentence.count(" ") + 1
            sentences.append(sentence if size <= count else cut_sentence(sentence, count))
            count -= size
        return " ".join(sentences)


class Prose:
    """Sentences from an endless source; one unit is one word, the last sentence is cut."""

    def __init__(self, source: Iterator[str]) -> None:
        self._source = source
        self._sentences: list[str] = []
        self._ends: list[int] = []

    def sentences(self, units: int) -> list[str]:
        """The first ``units`` words as sentences, fewer if the source ends."""
        while not self._ends or self._ends[-1] < units:
            sentence = next(self._source, None)
            if sentence is None:
                break
            self._sentences.append(sentence)
            words = sentence.count(" ") + 1
            self._ends.append(words + (self._ends[-1] if self._ends else 0))
        whole = bisect_right(self._ends, units)
        result = self._sentences[:whole]
        rest = units - (self._ends[whole - 1] if whole else 0)
        if rest and whole < len(self._sentences):
            result.append(cut_sentence(self._sentences[whole], rest))
        return result


def cut_sentence(sentence: str, words: int) -> str:
    """The first words of a sentence with its own kind of full stop."""
    stop = " ." if sentence.endswith(" .") else "."
    return " ".join(sentence.split(" ")[:words]).rstrip(" .,;:!?") + stop


def insert(hay: Sequence[str], items: Sequence[tuple[float, str]]) -> list[str]:
    """Put every item (relative position, text) between the units of the hay.

    Position 0 is before the first unit and 1 after the last; items at one place keep their order.
    """
    result: list[str] = []
    start = 0
    for position, text in sorted(items, key=lambda item: item[0]):
        place = min(int(position * (len(hay) + 1)), len(hay))
        result.extend(hay[start:place])
        result.append(text)
        start = place
    result.extend(hay[start:])
    return result


def paragraph(*parts: str) -> str:
    """Non-empty parts as lines of their own, with a final newline."""
    return "".join(part + "\n" for part in parts if part)
