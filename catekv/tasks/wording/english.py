"""The default wording: English sentences of our own for every RULER task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from random import Random
from typing import ClassVar

from catekv.tasks.core.wording import Wording
from catekv.tasks.drawing import words
from catekv.tasks.drawing.essay import essay

#: what a value is called, one and many
_NAMES = {
    "numbers": ("locker number", "locker numbers"),
    "words": ("watchword", "watchwords"),
    "uuids": ("serial code", "serial codes"),
}
#: numbers that variables hold
_FIRST_VALUE, _LAST_VALUE = 10_000, 99_998


def enumeration(items: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b, and c``."""
    if len(items) < 3:
        return " and ".join(items)
    return f"{', '.join(items[:-1])}, and {items[-1]}"


class EnglishWording(Wording):
    """English for any real tokenizer; words come from generators, so nothing has to be loaded."""

    name: ClassVar[str] = "english-1"
    tasks: ClassVar[frozenset[str]] = frozenset(
        {
            "niah_single_1",
            "niah_single_2",
            "niah_single_3",
            "niah_multikey_1",
            "niah_multikey_2",
            "niah_multikey_3",
            "niah_multivalue",
            "niah_multiquery",
            "vt",
            "vt_dense",
            "cwe",
            "fwe",
            "qa_1",
            "qa_2",
        }
    )
    filler_line: ClassVar[str] = (
        "The harbour is quiet. A gull sits on the rail. Ropes dry in the sun. "
        "The tide comes in. Nobody is in a hurry."
    )
    with_examples: ClassVar[bool] = True
    frequent_noise: ClassVar[str] = "..."

    def __init__(self, words_path: str | None = None) -> None:
        """``words_path``: a list of words, one a line, to use instead of the generated ones."""
        self._listed = words.read_words(words_path) if words_path else None
        self.word_list = words.list_name(words_path) if words_path else None

    def capacity(self, kind: str) -> int | None:
        if kind == "variable_values":
            return _LAST_VALUE - _FIRST_VALUE + 1
        if self._listed is None:
            return None
        if kind == "words":
            return len(self._listed) * (len(self._listed) - 1)
        return len(self._listed) if kind == "common_words" else None

    # --- needles ------------------------------------------------------------------------------
    def keys(self, kind: str, count: int, random: Random) -> list[str]:
        if kind == "numbers":
            return words.distinct(lambda: words.number(random), count, 9_000_000, "numbers")
        if kind == "uuids":
            return words.distinct(lambda: words.uuid(random), count, 1 << 122, "uuids")
        if self._listed is not None:
            available = len(self._listed) * (len(self._listed) - 1)
            pairs = partial(words.pair, self._listed, random)
            return words.distinct(pairs, count, available, "pairs of listed words")
        available = words.ADJECTIVES * words.NOUNS
        return words.distinct(lambda: words.key(random), count, available, "keys")

    def values(self, kind: str, count: int, random: Random) -> list[str]:
        return self.keys(kind, count, random)

    def needle(self, kind: str, key: str, value: str) -> str:
        return f"A {_NAMES[kind][0]} of {key} is {value}."

    def needle_instruction(self, kind: str, many: bool) -> str:
        one, several = _NAMES[kind]
        if many:
            return (
                f"Some {several} and the names they belong to are written somewhere in the text "
                f"below. Read everything and keep the {several} in mind: you will be asked for "
                "them at the end."
            )
        return (
            f"A {one} and the name it belongs to are written somewhere in the text below. Read "
            f"everything and keep the {one} in mind: you will be asked for it at the end."
        )

    def needle_question(self, kind: str, keys: Sequence[str], values_per_key: int) -> str:
        one, several = _NAMES[kind]
        if len(keys) * values_per_key == 1:
            return f"Question: Which {one} does the text above give for {keys[0]}?"
        return f"Question: Which {several} does the text above give for {enumeration(keys)}?"

    def needle_answer_prefix(self, kind: str, keys: Sequence[str], values_per_key: int) -> str:
        one, several = _NAMES[kind]
        if len(keys) * values_per_key == 1:
            return f" Answer: The {one} that the text gives for {keys[0]} is"
        return f" Answer: The {several} that the text gives for {enumeration(keys)} are"

    def essay(self, random: Random) -> Iterator[str]:
        return essay(random)

    # --- variable tracking --------------------------------------------------------------------
    def variables(self, count: int, random: Random, letters: int = 5) -> list[str]:
        return words.distinct(
            lambda: words.variable(random, letters), count, 26**letters, "variable names"
        )

    def variable_value(self, random: Random) -> str:
        return str(random.randint(_FIRST_VALUE, _LAST_VALUE))

    def assignment(self, name: str, source: str, first: bool) -> str:
        return f"LET {name} = {source}"

    def chain_instruction(self) -> str:
        return (
            "Assignments to variables are scattered over the text below. Follow them from one "
            "variable to the next and keep track of the number that each variable holds."
        )

    def chain_question(self, value: str) -> str:
        return (
            f"Question: Which variables in the text above hold the number {value}, directly or "
            "through other variables?"
        )

    def chain_answer_prefix(self, value: str, count: int) -> str:
        return f" Answer: Following the assignments, {count} variables hold {value}. They are:"

    # --- frequent words -----------------------------------------------------------------------
    def coded_words(self, count: int, random: Random) -> list[str]:
        return words.distinct(lambda: words.coded_word(random), count, 26**6, "coded words")

    def frequent_instruction(self) -> str:
        return (
            "The text below is in code: every word is a meaningless group of letters. Keep track "
            "of how often each coded word occurs."
        )

    def frequent_question(self) -> str:
        return (
            "Question: Leaving the dots '...' aside, which three coded words occur most often in "
            "the text above? Name only the words."
        )

    def frequent_answer_prefix(self) -> str:
        return " Answer: The three coded words that occur most often are:"

    # --- common words -------------------------------------------------------------------------
    def common_words(self, count: int, random: Random) -> list[str]:
        if self._listed is not None:
            return words.sample(self._listed, count, random)
        return words.distinct(
            lambda: words.common_word(random), count, words.COMMON_WORDS, "common words"
        )

    def common_instruction(self) -> str:
        return (
            "Below is a numbered list of words. A few of its words occur much more often than the "
            "others. Keep them in mind."
        )

    def common_question(self, count: int) -> str:
        return f"Question: Which {count} words occur most often in the list above?"

    def common_answer_prefix(self, count: int) -> str:
        return f" Answer: The {count} words that occur most often in the list are:"

    # --- questions about documents ------------------------------------------------------------
    def documents_instruction(self) -> str:
        return (
            "Use the documents to answer the question. Reply with the answer alone, in as few "
            "words as possible."
        )

    def document(self, number: int, text: str) -> str:
        return f"Document {number}:\n{text}\n"

    def documents_question(self, question: str) -> str:
        return f"Question: {question}"

    def documents_answer_prefix(self) -> str:
        return " Answer:"
