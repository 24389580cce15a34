"""Options of the needle-in-a-haystack task."""

from __future__ import annotations

from dataclasses import dataclass

from catekv.errors import UserError
from catekv.tasks.core.task import at_least_one
from catekv.tasks.drawing.depths import Depths, read_depths


@dataclass(frozen=True)
class HaystackOptions:
    """What is hidden in which text, and where.

    Attributes:
        depths: percent of the text before the needle: a number of evenly spaced depths (35 in the
            original), ``linear:FIRST:LAST:N``, ``sigmoid:N``, or the depths: ``0,50,100``.
        rounds: samples of one depth that follow each other; further samples are further rounds.
        fact: ``random`` (a new name and number in every sample) or ``fixed`` (one fact about a city
            in all samples, the original test's form).
        needle: a sentence to hide instead; it needs ``question`` and ``answer`` beside it.
        question: what is asked about ``needle``.
        answer: what a right answer contains, word for word.
        answer_prefix: the begun answer that the model continues; default by wording.
        num_needles: random facts that are hidden and asked for together. The first is at the depth,
            the others follow (100 - depth) / ``num_needles`` percent apart.
        essay_path: prose instead of the generated one: file, or folder (its files in sorted order),
            repeated where it is too short.
        insertion: ``text`` counts the depth in characters, ``tokens`` in tokens of the tokenizer
            (which must be a fast one). Both go back to the end of a sentence.
    """

    depths: Depths = 11
    rounds: int = 1
    fact: str = "random"
    needle: str | None = None
    question: str | None = None
    answer: str | None = None
    answer_prefix: str | None = None
    num_needles: int = 1
    essay_path: str | None = None
    insertion: str = "text"

    def __post_init__(self) -> None:
        read_depths(self.depths)
        if self.fact not in ("random", "fixed"):
            raise UserError(f"fact={self.fact!r}; use 'random' or 'fixed'")
        if self.insertion not in ("text", "tokens"):
            raise UserError(f"insertion={self.insertion!r}; use 'text' or 'tokens'")
        at_least_one(self, "rounds", "num_needles")
        own = [name for name in ("needle", "question", "answer") if getattr(self, name)]
        if own and len(own) < 3:
            raise UserError(
                f"only {' and '.join(own)} given; a needle of your own needs needle=, question= "
                "and answer= (the text that a right answer contains)"
            )
        if self.answer_prefix and not own:
            raise UserError("answer_prefix= belongs to a needle of your own; give needle= too")
        if self.answer and self.answer.strip().lower() in (self.answer_prefix or "").lower():
            raise UserError(f"answer_prefix={self.answer_prefix!r} gives the answer away")
        if self.num_needles > 1 and (own or self.fact == "fixed"):
            raise UserError(
                f"num_needles={self.num_needles} hides random facts; leave needle= and fact= out"
            )
        if self.answer and self.answer.strip().lower() not in str(self.needle).lower():
            raise UserError(
                f"answer={self.answer!r} does not occur in the needle; an answer is counted as "
                "right when it contains this text, so take it from the needle"
            )
