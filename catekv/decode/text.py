"""Text of an answer while its tokens come in: what can be shown already, and where it stops.

transformers' streamers take one sequence and know no stop strings; these take batches and hold back
what may be the beginning of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from catekv.errors import UserError

#: What tokenizers decode an incomplete character to.
INCOMPLETE = "\ufffd"
#: Tokens that are decoded together at least; older ones are not decoded again.
WINDOW = 32


def stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """One or several stop strings as a tuple; ``UserError`` for an empty one."""
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if any(not isinstance(string, str) or not string for string in strings):
        raise UserError("a stop string is empty; leave it out, or pass text")
    return strings


class TextStream:
    """The text of one sequence.

    Pieces that :meth:`add` and :meth:`finish` return, joined, are :attr:`text` exactly. A piece is
    held back as long as its last character is incomplete (one character may take several tokens)
    or may turn out to begin a stop string.

    Args:
        tokenizer: decodes; special tokens are left out.
        stop: the text ends before the first of these strings.

    Attributes:
        tokens: what was added. text: the text so far, cut before a stop string.
        stopped: whether a stop string was found.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()):
        self.tokenizer = tokenizer
        self.stop = tuple(stop)
        self.tokens: list[int] = []
        self.text = ""
        self.stopped = False
        self._shown = ""
        # text of the tokens before `_end`; decoding goes on from `_start`, because a tokenizer may
        # decode the first token of a text in its own way
        self._settled = ""
        self._start = 0
        self._end = 0

    def add(self, token: int) -> str:
        """Add a token; return the text that it makes certain."""
        self.tokens.append(token)
        text = self._decode()
        # a tokenizer may take back a space that was shown; what was shown stays
        self.text = self._shown + text[len(self._shown) :]
        self._cut()
        if self.stopped:
            return self._show(len(self.text))
        certain = len(self.text.rstrip(INCOMPLETE))
        return self._show(certain - self._possible_stop(certain))

    def finish(self) -> str:
        """No more tokens come; return the rest of the text."""
        return self._show(len(self.text))

    def tokens_before_stop(self) -> list[int]:
        """The tokens whose text lies before the stop string as a whole."""
        count = len(self.tokens)
        while self.stopped and count and len(self._whole(count)) > len(self.text):
            count -= 1
        return self.tokens[:count]

    def _whole(self, count: int) -> str:
        return self.tokenizer.decode(self.tokens[:count], skip_special_tokens=True)

    def _decode(self) -> str:
        def decode(tokens: list[int]) -> str:
            return self.tokenizer.decode(tokens, skip_special_tokens=True)

        window = decode(self.tokens[self._start :])
        known = decode(self.tokens[self._start : self._end])
        text = self._settled + window[len(known) :]
        if len(self.tokens) - self._end >= WINDOW and not text.endswith(INCOMPLETE):
            self._settled, self._start, self._end = text, self._end, len(self.tokens)
        return text

    def _cut(self) -> None:
        # the beginning of a stop string is never shown
        places = [self.text.find(string, len(self._shown)) for string in self.stop]
        found = [place for place in places if place >= 0]
        if found:
            self.text = self.text[: min(found)]
            self.stopped = True

    def _possible_stop(self, length: int) -> int:
        """How many of the first ``length`` characters may turn out to begin a stop string."""
        text = self.text[:length]
        return max(
            (
                size
                for string in self.stop
                for size in range(1, min(len(string), length + 1))
                if text.endswith(string[:size])
            ),
            default=0,
        )

    def _show(self, length: int) -> str:
        piece = self.text[len(self._shown) : length]
        self._shown += piece
        return piece
