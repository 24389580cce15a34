"""The words of the task: English for any real tokenizer, the small wording for its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from string import ascii_uppercase

from catekv.tasks.core.wording import Wording
from catekv.tasks.wording.small import SmallWording

_INSTRUCTION = (
    "Below is a document of numbered paragraphs. One of them states an access code. Read the "
    "document and keep the code in mind: you will be asked for it at the end."
)
_SENTENCES = 3


@dataclass(frozen=True)
class Secret:
    """A code, the sentence that states it, and the question about it.

    ``opening`` stands before the paragraphs; ``numbered`` says whether they carry numbers.
    """

    code: str
    sentence: str
    opening: tuple[str, ...]
    question: str
    answer_prefix: str
    numbered: bool = True

    def paragraph(self, number: int, text: str) -> str:
        return f"Paragraph {number}. {text}" if self.numbered else text


def secret(wording: Wording, random: Random) -> Secret:
    """The random code of one sample, with its words."""
    if isinstance(wording, SmallWording):
        (key,), (value,) = wording.keys("words", 1, random), wording.values("numbers", 1, random)
        return Secret(
            value,
            wording.needle("numbers", key, value),
            (),
            wording.needle_question("numbers", [key], 1),
            f" {wording.needle_answer_prefix('numbers', [key], 1)}",
            numbered=False,
        )
    first, last = ("".join(random.choices(ascii_uppercase, k=3)) for _ in range(2))
    code, document = f"{first}-{random.randint(10_000, 99_999)}-{last}", random.randint(10, 99)
    return Secret(
        code,
        f"The access code of document {document} is {code}.",
        (_INSTRUCTION, f"Document {document}"),
        f"Question: Which access code does document {document} state?",
        f" Answer: The access code of document {document} is",
    )


def paragraph(sentences: Iterator[str]) -> str:
    """The next sentences of some prose as one paragraph."""
    return " ".join(next(sentences) for _ in range(_SENTENCES))
