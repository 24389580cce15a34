"""Cutting prompts that are too long for a model in the middle, by LongBench's two rules."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

from catekv.errors import UserError

Token = TypeVar("Token")
RULES = ("v1", "v2")


class Cut(NamedTuple):
    """How many tokens stay at the start and at the end, and how many between them go."""

    head: int
    tail: int
    removed: int


def middle_cut(tokens: int, limit: int, rule: str = "v1") -> Cut:
    """What is kept of a prompt that may have ``limit`` tokens.

    ``"v1"`` keeps ``limit // 2`` at both ends, so an odd limit keeps one token less. ``"v2"`` keeps
    ``limit // 2`` at the start and the rest of the limit at the end.

    Raises:
        UserError: unknown rule; a limit below 2, which leaves nothing of one end.
    """
    if rule not in RULES:
        raise UserError(f"unknown truncation rule {rule!r}; valid: {', '.join(RULES)}")
    if limit < 2:
        raise UserError(f"cannot cut a prompt to {limit} tokens; the limit must be 2 or more")
    if tokens <= limit:
        return Cut(tokens, 0, 0)
    head = limit // 2
    tail = head if rule == "v1" else limit - head
    return Cut(head, tail, tokens - head - tail)


def halves(
    tokens: Sequence[Token], limit: int, rule: str = "v1"
) -> tuple[Sequence[Token], Sequence[Token], int]:
    """The kept start, the kept end and the number of tokens cut.

    LongBench v1 decodes both parts without special tokens, joins the texts, wraps them in the chat
    template and encodes again, which can exceed the limit by a few tokens.
    """
    cut = middle_cut(len(tokens), limit, rule)
    return tokens[: cut.head], tokens[len(tokens) - cut.tail :], cut.removed


def keep_ends(tokens: Sequence[Token], limit: int, rule: str = "v1") -> list[Token]:
    """The kept tokens of both ends, in order."""
    head, tail, _ = halves(tokens, limit, rule)
    return [*head, *tail]


class CutPrompt(NamedTuple):
    """A prompt cut in the middle.

    ``removed`` counts tokens. ``boundary`` says whether the end of the context is still known;
    where it is not, ``context`` holds the whole text and ``question`` is empty.
    """

    context: str
    question: str
    removed: int
    boundary: bool


class PromptCutter:
    """Cuts ``context + question`` in the middle, tokenised once, as often as wanted.

    Args:
        tokenizer: a transformers tokenizer. A fast one says which characters a token stands for, so
            the question is found again exactly; with a slow one only where decoding gives it back.
        context: text that may lose its middle.
        question: text after it. A cut that reaches into it leaves no boundary.
        verbatim: keep the characters of the text as they are. Otherwise the kept tokens are decoded
            without special tokens and joined, and BOS counts as one of them, as in LongBench: some
            tokenizers then change white space, and a character may be torn.
    """

    def __init__(
        self, tokenizer: Any, context: str, question: str, *, verbatim: bool = True
    ) -> None:
        self._tokenizer, self._verbatim = tokenizer, verbatim
        self._text, self._question, self._boundary = context + question, question, len(context)
        self._ends: list[int] | None = None
        fast = bool(getattr(tokenizer, "is_fast", False))
        encoded = tokenizer(
            self._text,
            add_special_tokens=not verbatim,
            return_offsets_mapping=fast,
            return_attention_mask=False,
            verbose=False,
        )
        self._ids: list[int] = list(encoded["input_ids"])
        if fast:
            # special tokens stand for no characters: they end where the token before them does
            self._ends, last = [], 0
            for _, end in encoded["offset_mapping"]:
                last = max(last, end)
                self._ends.append(last)

    @property
    def tokens(self) -> int:
        """Tokens of the whole text."""
        return len(self._ids)

    def cut(self, limit: int, rule: str = "v1") -> CutPrompt:
        """At most ``limit`` tokens of the text, by the rules of :func:`middle_cut`."""
        cut = middle_cut(self.tokens, limit, rule)
        if not cut.removed:
            return CutPrompt(self._text[: self._boundary], self._question, 0, True)
        head, tail = cut.head, self.tokens - cut.tail
        if self._ends is None:
            return self._by_decoding(head, tail, cut.removed)
        asked = bisect_right(self._ends, self._boundary)
        if tail > asked:
            if self._verbatim:
                text = self._text[: self._ends[head - 1]] + self._text[self._ends[tail - 1] :]
            else:
                text = self._decoded(0, head) + self._decoded(tail, self.tokens)
            return CutPrompt(text, "", cut.removed, False)
        if self._verbatim:
            start = self._text[: self._ends[head - 1]]
            context = start + self._text[self._ends[tail - 1] : self._boundary]
        else:
            # a token that holds the end of the context and the start of the question is split
            rest = self._text[self._ends[asked - 1] : self._boundary]
            context = self._decoded(0, head) + self._decoded(tail, asked) + rest
        return CutPrompt(context, self._question, cut.removed, True)

    def _decoded(self, first: int, last: int) -> str:
        return str(self._tokenizer.decode(self._ids[first:last], skip_special_tokens=True))

    def _by_decoding(self, head: int, tail: int, removed: int) -> CutPrompt:
        start, end = self._decoded(0, head), self._decoded(tail, self.tokens)
        if not self._question or not end.endswith(self._question):
            return CutPrompt(start + end, "", removed, not self._question)
        return CutPrompt(start + end.removesuffix(self._question), self._question, removed, True)
