"""Question modes in words that explain themselves; records keep the papers' words."""

from __future__ import annotations

_WORDS = {
    "agnostic": ("after", "question asked after compression"),
    "aware": ("inside", "question inside the compressed prompt"),
}


def question_word(question: str) -> str:
    """A question mode in the word of ``--question``, for a column of a table."""
    return _WORDS[question][0]


def asked(question: str) -> str:
    """A question mode for a title or a sentence."""
    return _WORDS[question][1]
