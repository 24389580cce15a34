"""What is worked out once per tokenizer, because it takes long for large vocabularies."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

#: words remembered before the memory is emptied
_REMEMBERED = 1_000_000
#: line breaks belong to the word before: tokenizers join them to its full stop
_WORD = re.compile(r"[^\S\n]*\S+\n*|\s+")


@dataclass(frozen=True)
class _Known:
    counter: WordCounter
    hash: str


_KNOWN: WeakKeyDictionary[Any, _Known] = WeakKeyDictionary()


def _known(tokenizer: Any) -> _Known:
    if tokenizer not in _KNOWN:
        vocabulary = sorted(tokenizer.get_vocab().items())
        digest = hashlib.sha256(repr(vocabulary).encode()).hexdigest()[:16]
        _KNOWN[tokenizer] = _Known(WordCounter(), digest)
    return _KNOWN[tokenizer]


def tokenizer_hash(tokenizer: Any) -> str:
    """Sixteen hexadecimal digits that tell tokenizers with different vocabularies apart."""
    return _known(tokenizer).hash


def word_counter(tokenizer: Any) -> WordCounter:
    """The estimator of token counts that remembers this tokenizer's words."""
    return _known(tokenizer).counter


class WordCounter:
    """Estimates tokens as the sum over words, each with its space before and line breaks behind.

    One counter serves one tokenizer; it does not keep it alive.
    """

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def __call__(self, tokenizer: Any, text: str) -> int:
        words = _WORD.findall(text)
        known = self._known
        unknown = [word for word in dict.fromkeys(words) if word not in known]
        if unknown:
            if len(known) > _REMEMBERED:
                known.clear()
                unknown = list(dict.fromkeys(words))
            known.update(zip(unknown, _sizes(tokenizer, unknown), strict=True))
        return sum(map(known.__getitem__, words))


def _sizes(tokenizer: Any, words: list[str]) -> Iterable[int]:
    """Tokens of every word. The library below the tokenizer says so without making lists of them.

    It reads no settings that the tokenizer would pass on, which an estimate can afford.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return map(len, tokenizer(words, add_special_tokens=False)["input_ids"])
    return map(len, backend.encode_batch_fast(words, add_special_tokens=False))
