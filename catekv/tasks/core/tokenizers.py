"""What is worked out once per tokenizer, because it takes long for large vocabularies."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

pass


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
