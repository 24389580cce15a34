"""From text to token ids: which special tokens begin a prompt, and how text goes on after another.

One rule for every entry. A prompt begins with what its tokenizer puts before plain text (mostly
BOS), once: text that brings it itself is not given a second one. Nothing is put behind it: an EOS
there would end the prompt before its question. Text that follows other text begins with nothing of
its own, neither a special token nor the space that some tokenizers put before every text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from catekv.errors import UserError

#: Characters, and tokens, of the text before that are tokenised along with its continuation.
ANCHOR_CHARACTERS = 32
ANCHOR_TOKENS = 8
#: Stand in where a tokenizer merges the true end of the text before with the text that follows.
_NEUTRAL_ANCHORS = ("\n", ".", "a.")


def check_text(text: str, what: str = "the text") -> None:
    """``UserError`` if a text holds half a character (a lone surrogate): tokenizers cannot read it,
    and a shell makes it of every byte that is no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{what} holds half a character, {text[error.start]!a} at {error.start}; give it "
            "as UTF-8"
        ) from None


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text on its own, without special tokens that it does not spell out.

    Raises:
        UserError: half a character.
    """
    check_text(text)
    return list(tokenizer.encode(text, add_special_tokens=False))


def leading_ids(tokenizer: Any) -> list[int]:
    """Ids that the tokenizer puts before plain text; none for many of them."""
    with_special = list(tokenizer.encode("a"))
    plain = text_ids(tokenizer, "a")
    for start in range(len(with_special) - len(plain) + 1):
        if with_special[start : start + len(plain)] == plain:
            return with_special[:start]
    bos = getattr(tokenizer, "bos_token_id", None)
    return [bos] if bos is not None and with_special[:1] == [bos] else []


def beginning_ids(tokenizer: Any, text: str, leading: Sequence[int] | None = None) -> list[int]:
    """Ids of a text that begins a prompt.

    Args:
        leading: what :func:`leading_ids` found, if that is known already.
    """
    lead = leading_ids(tokenizer) if leading is None else list(leading)
    ids = text_ids(tokenizer, text)
    return ids if ids[: len(lead)] == lead else [*lead, *ids]


def continuing_ids(tokenizer: Any, text: str, before: str = "") -> list[int]:
    """Ids of a text that goes on after ``before``.

    The end of ``before`` is tokenised along and cut off. Where that cut falls inside a token
    another text stands in for it.
    """
    alone = text_ids(tokenizer, text) if text else []
    if not alone:
        return []
    letters = _letters(tokenizer, alone)
    for anchor in (before, *_NEUTRAL_ANCHORS):
        head = text_ids(tokenizer, anchor) if anchor else []
        joined = text_ids(tokenizer, anchor + text) if head else []
        rest = joined[len(head) :]
        # an unknown word that swallows the text looks like the unknown word before it
        whole = joined[: len(head)] == head and _letters(tokenizer, rest) == letters
        if head and whole:
            return rest
    return alone


def end_of_text(text: str) -> str:
    """The last words of a text: an anchor for :func:`continuing_ids`."""
    end = text[-ANCHOR_CHARACTERS:]
    return end[end.find(" ") + 1 :] if " " in end[:-1] else end


def end_of_ids(tokenizer: Any, ids: Sequence[int]) -> str:
    """The same of a prompt whose text is not at hand."""
    return _spelled(tokenizer, ids[-ANCHOR_TOKENS:])


def _spelled(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(
        tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    )


def _letters(tokenizer: Any, ids: Sequence[int]) -> str:
    """What ids spell but for the spaces, which are what tokenizers differ in."""
    return "".join(_spelled(tokenizer, ids).replace("\N{LOWER ONE EIGHTH BLOCK}", " ").split())
