"""BLEU of a corpus (Papineni et al., 2002): 4-grams, brevity penalty, no smoothing.

Words as in mteval-v13a, which is what the published code measured with. One reference per answer.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

_ORDER = 4
_SIGNS = re.compile(r"([{-~\[-` -&(-+:-@/])")
_NUMBER_SIGNS = (
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)
_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))


def words_13a(text: str) -> list[str]:
    """Words and signs of a text by the rules of mteval-v13a."""
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, sign in _ENTITIES:
        text = text.replace(entity, sign)
    text = _SIGNS.sub(r" \1 ", f" {text} ")
    for pattern, replacement in _NUMBER_SIGNS:
        text = pattern.sub(replacement, text)
    return text.split()


def _grams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))


def corpus_bleu(answers: Sequence[str], references: Sequence[str]) -> float:
    """BLEU in [0, 1] of all answers together: matches and lengths are summed before the division.

    0 where any order has no match, as without smoothing.
    """
    matched, possible = [0] * _ORDER, [0] * _ORDER
    answer_words = reference_words = 0
    for answer, reference in zip(answers, references, strict=True):
        own, wanted = words_13a(answer), words_13a(reference)
        answer_words += len(own)
        reference_words += len(wanted)
        for order in range(1, _ORDER + 1):
            found = _grams(own, order)
            matched[order - 1] += sum((found & _grams(wanted, order)).values())
            possible[order - 1] += max(0, len(own) - order + 1)
    if min(matched) == 0:
        return 0.0
    mean = sum(math.log(m / p) for m, p in zip(matched, possible, strict=True)) / _ORDER
    return math.exp(mean + min(0.0, 1 - reference_words / answer_words))
