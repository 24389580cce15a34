"""Texts whose end needs what stands far back: passkeys in prose, and questions for them."""

from __future__ import annotations

from typing import Any, NamedTuple

from catekv.errors import UserError
from catekv.tasks.building import find_wording
from catekv.tasks.core.randomness import generator
from catekv.tasks.core.token_ids import beginning_ids, continuing_ids, text_ids

#: Depths of the first and the last passkey, as shares of the prose.
FIRST, LAST = 0.05, 0.95


class PasskeyText(NamedTuple):
    """Token ids, the last ``labelled`` of which are questions and answers."""

    ids: list[int]
    labelled: int


def passkey_text(
    tokenizer: Any, length: int, passkeys: int, codes: int, seed: int, index: int
) -> PasskeyText:
    """A text of about ``length`` tokens, at most, in the tokenizer's wording.

    Args:
        passkeys: facts, spread evenly over the prose, each asked for behind it, in another order.
        codes: numbers that a fact consists of.

    Raises:
        UserError: a length that does not hold the facts and their questions.
    """
    random = generator("passkeys", seed, index)
    wording = find_wording(None, tokenizer)
    names = wording.keys("words", passkeys, random)
    values = [" ".join(wording.values("numbers", codes, random)) for _ in names]
    facts = [wording.needle("numbers", *fact).strip() for fact in zip(names, values, strict=True)]
    asked = list(zip(names, values, strict=True))
    random.shuffle(asked)
    end = " " + " ".join(
        f"{wording.needle_question('numbers', [name], 1)} "
        f"{wording.needle_answer_prefix('numbers', [name], 1).strip()} {value} ."
        for name, value in asked
    )

    sentences = wording.essay(random)
    prose: list[str] = []
    room = length - sum(len(text_ids(tokenizer, f" {part}")) for part in [*facts, end])
    while room > 0:
        prose.append(next(sentences))
        room -= len(text_ids(tokenizer, f" {prose[-1]}"))
    while True:
        text = _with_facts(prose, facts)
        before, behind = beginning_ids(tokenizer, text), continuing_ids(tokenizer, end, text)
        tokens = len(before) + len(behind)
        if tokens <= length:
            return PasskeyText([*before, *behind], len(behind))
        if not prose:
            raise UserError(
                f"{passkeys} passkeys of {codes} numbers and their questions take {tokens} tokens, "
                f"more than the length of {length}; give a larger --length, or fewer --passkeys or "
                "--codes"
            )
        prose.pop()


def _with_facts(prose: list[str], facts: list[str]) -> str:
    """The sentences with the facts between them, from :data:`FIRST` to :data:`LAST`."""
    step = (LAST - FIRST) / max(1, len(facts) - 1)
    places = [round((FIRST + index * step) * len(prose)) for index in range(len(facts))]
    parts: list[str] = []
    for place, sentence in enumerate([*prose, ""]):
        parts += [fact for fact, at in zip(facts, places, strict=True) if at == place]
        parts.append(sentence)
    return " ".join(part for part in parts if part)
