"""What is hidden: random names with numbers, one fixed fact, or a sentence of the user."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

from catekv.errors import UserError
from catekv.tasks.core.wording import Wording
from catekv.tasks.families.niah.options import HaystackOptions
from catekv.tasks.wording import vocabulary
from catekv.tasks.wording.small import SmallWording

_KINDS = ("words", "numbers")
_INSTRUCTION = (
    "Read the text below with care. One sentence in it has nothing to do with the rest, and you "
    "will be asked about it at the end."
)
_FIXED_NEEDLE = (
    "Visitors to Porto agree that no hour there is finer than one spent on the upper bridge with a "
    "bag of warm chestnuts at dusk."
)
_FIXED_QUESTION = "How, according to the text, is the finest hour in Porto spent?"
_FIXED_ANSWER = "on the upper bridge with a bag of warm chestnuts at dusk"
_FIXED_NUMBER = "47 03 88"


@dataclass(frozen=True)
class Fact:
    """Needles with the question about them; ``outputs`` are the answers, one per needle."""

    needles: tuple[str, ...]
    outputs: tuple[str, ...]
    instruction: str
    question: str
    answer_prefix: str
    notes: dict[str, Any] = field(default_factory=dict)


def fact(options: HaystackOptions, wording: Wording, random: Random) -> Fact:
    """The fact of one sample.

    Raises:
        UserError: the wording has no names or numbers for random facts.
    """
    if options.needle is not None:
        return Fact(
            needles=(options.needle.strip(),),
            outputs=(str(options.answer).strip(),),
            instruction="" if isinstance(wording, SmallWording) else _INSTRUCTION,
            question=str(options.question).strip(),
            answer_prefix=(options.answer_prefix or "").strip(),
        )
    if options.fact == "fixed" and not isinstance(wording, SmallWording):
        return Fact(
            (_FIXED_NEEDLE,),
            (_FIXED_ANSWER,),
            _INSTRUCTION,
            f"Question: {_FIXED_QUESTION}",
            "Answer: It is spent",
        )
    if options.fact == "fixed":
        return _facts(wording, [vocabulary.names()[0]], [_FIXED_NUMBER])
    if "niah_single_2" not in wording.tasks:
        raise UserError(f"the wording {wording.name!r} has no facts to hide in prose")
    keys, values = _KINDS
    drawn = wording.keys(keys, options.num_needles, random)
    return _facts(wording, drawn, wording.values(values, options.num_needles, random))


def _facts(wording: Wording, keys: list[str], values: list[str]) -> Fact:
    _, kind = _KINDS
    return Fact(
        tuple(wording.needle(kind, key, value) for key, value in zip(keys, values, strict=True)),
        tuple(values),
        wording.needle_instruction(kind, len(keys) > 1),
        wording.needle_question(kind, keys, 1),
        wording.needle_answer_prefix(kind, keys, 1).strip(),
        {"keys": keys},
    )
