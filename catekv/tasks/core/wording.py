"""What the RULER builders need from a language: sentences, names and question texts.

RULER's tasks are structures (needles in hay, chains of names, word counts); their words are ours.
A wording turns the structures into text. ``english`` serves any real tokenizer; ``small`` is the
closed vocabulary of the embedded model. Every random draw takes the sample's own generator.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from random import Random
from typing import ClassVar

from catekv.errors import UserError


class Wording(ABC):
    """Texts of the RULER tasks in one language.

    Key and value kinds are ``"words"``, ``"numbers"`` and ``"uuids"``. A method that cannot give
    enough distinct items raises ``UserError`` saying how many it has.
    """

    #: recorded with every sample as the prompt set, e.g. ``"english-1"``
    name: ClassVar[str]
    #: names of the tasks (without ``ruler/``) that this wording can express
    tasks: ClassVar[frozenset[str]]
    #: one line of five short sentences, repeated as hay
    filler_line: ClassVar[str]
    #: whether variable tracking and common words carry a solved example before the sample
    with_examples: ClassVar[bool]
    #: new tokens by task name where the answers need other allowances than RULER's
    max_new_tokens: ClassVar[dict[str, int]] = {}
    #: name and hash of the list that its words are drawn from, if the user gave one
    word_list: str | None = None

    def capacity(self, kind: str) -> int | None:
        """How many distinct items of a kind exist; None means more than any sample needs.

        Kinds are the key and value kinds, ``"variables"``, ``"variable_values"`` and
        ``"coded_words"``. Texts made of facts (``niah_multikey_2``, ``vt_dense``) use what there is
        and fill the rest of the length with filler lines spread evenly between the facts.
        """
        return None

    # --- needles ------------------------------------------------------------------------------
    @abstractmethod
    def keys(self, kind: str, count: int, random: Random) -> list[str]:
        """Distinct keys."""

    @abstractmethod
    def values(self, kind: str, count: int, random: Random) -> list[str]:
        """Distinct values."""

    @abstractmethod
    def needle(self, kind: str, key: str, value: str) -> str:
        """The sentence that ties ``value`` (of ``kind``) to ``key``."""

    @abstractmethod
    def needle_instruction(self, kind: str, many: bool) -> str:
        """Text before the hay; may be empty. ``many``: more than one value is asked for."""

    @abstractmethod
    def needle_question(self, kind: str, keys: Sequence[str], values_per_key: int) -> str:
        """The question after the hay."""

    @abstractmethod
    def needle_answer_prefix(self, kind: str, keys: Sequence[str], values_per_key: int) -> str:
        """The beginning of the answer that the model continues."""

    @abstractmethod
    def essay(self, random: Random) -> Iterator[str]:
        """Endless prose, one sentence at a time, none twice."""

    # --- variable tracking --------------------------------------------------------------------
    @abstractmethod
    def variables(self, count: int, random: Random, letters: int = 5) -> list[str]:
        """Distinct variable names."""

    @abstractmethod
    def variable_value(self, random: Random) -> str:
        """The number at the start of a chain."""

    @abstractmethod
    def assignment(self, name: str, source: str, first: bool) -> str:
        """``name`` gets ``source``: a number if ``first``, else the name before it."""

    @abstractmethod
    def chain_instruction(self) -> str: ...

    @abstractmethod
    def chain_question(self, value: str) -> str: ...

    @abstractmethod
    def chain_answer_prefix(self, value: str, count: int) -> str: ...

    # --- frequent words -----------------------------------------------------------------------
    @abstractmethod
    def coded_words(self, count: int, random: Random) -> list[str]:
        """Distinct meaningless words; the first is replaced by :attr:`frequent_noise`."""

    frequent_noise: ClassVar[str]

    @abstractmethod
    def frequent_instruction(self) -> str: ...

    @abstractmethod
    def frequent_question(self) -> str: ...

    @abstractmethod
    def frequent_answer_prefix(self) -> str: ...

    # --- common words -------------------------------------------------------------------------
    def common_words(self, count: int, random: Random) -> list[str]:
        """Distinct words, none part of another."""
        raise self._cannot("common words")

    def common_instruction(self) -> str:
        raise self._cannot("common words")

    def common_question(self, count: int) -> str:
        raise self._cannot("common words")

    def common_answer_prefix(self, count: int) -> str:
        raise self._cannot("common words")

    # --- questions about documents ------------------------------------------------------------
    def documents_instruction(self) -> str:
        """Text before and after the documents."""
        raise self._cannot("questions about documents")

    def document(self, number: int, text: str) -> str:
        raise self._cannot("questions about documents")

    def documents_question(self, question: str) -> str:
        raise self._cannot("questions about documents")

    def documents_answer_prefix(self) -> str:
        raise self._cannot("questions about documents")

    def _cannot(self, what: str) -> UserError:
        return UserError(
            f"the wording {self.name!r} cannot express {what}; it has the tasks "
            f"{', '.join(sorted(self.tasks))}"
        )
