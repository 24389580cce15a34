"""A prompt in its three parts."""

from __future__ import annotations

from typing import NamedTuple


class PromptText(NamedTuple):
    """Context part, question part and begun answer.

    As a wording: the texts before and after a row's context, ``{input}`` marks the row's question.
    """

    context: str
    question: str
    answer_prefix: str = ""
