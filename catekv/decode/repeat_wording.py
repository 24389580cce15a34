"""The words that ask a model to write its context once more."""

from __future__ import annotations

from typing import Any

from catekv.errors import UserError
from catekv.prefill.repeating import Wording
from catekv.tasks.core.prompt import prompt_format
from catekv.tasks.core.token_ids import text_ids

FIRST = "\n\nWrite the whole text above once more, word for word."
LATER = "\n\nGo on writing the text above once more, word for word, behind these words:"


def repeat_wording(tokenizer: Any) -> Wording:
    """Token ids of the words, and of what the tokenizer's chat template puts around a user's text.

    No words without a tokenizer, or with one that does not know them.
    """
    if tokenizer is None:
        return Wording()
    first, later = (tuple(text_ids(tokenizer, text)) for text in (FIRST, LATER))
    if getattr(tokenizer, "unk_token_id", None) in (*first, *later):
        first = later = ()
    try:
        turn = prompt_format(tokenizer)
    except UserError:
        # a template that takes no plain user message: prompts do not begin with it
        turn = prompt_format(tokenizer, None)
    return Wording(
        first,
        later,
        tuple(turn.context_ids("")) if turn.before else (),
        tuple(text_ids(tokenizer, turn.after)),
    )
