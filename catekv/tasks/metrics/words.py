"""Word-overlap scores of short answers (SQuAD's rules, as LongBench and ZeroSCROLLS use them)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def as_list(references: str | Sequence[str]) -> list[str]:
    """One reference or several, as a list."""
    return [references] if isinstance(references, str) else list(references)


def normalise_answer(text: str) -> str:
    """Lower-case, without ASCII punctuation and articles, white space squeezed (SQuAD)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def overlap_f1(found: Sequence[str], wanted: Sequence[str]) -> float:
    """F1 of two token lists, counted as multisets; 0 when they share nothing."""
    overlap = sum((Counter(found) & Counter(wanted)).values())
    if not overlap:
        return 0.0
    precision, recall = overlap / len(found), overlap / len(wanted)
    return 2 * precision * recall / (precision + recall)


def qa_f1(prediction: str, references: str | Sequence[str]) -> float:
    """Multiset word overlap F1 after :func:`normalise_answer`; maximum over references."""
    words = normalise_answer(prediction).split()
    scores = (overlap_f1(words, normalise_answer(wanted).split()) for wanted in as_list(references))
    return max(scores, default=0.0)


def keyword_recall(prediction: str, reference: str) -> float:
    """Share of the reference's different words that the prediction has, both normalised.

    The softer score beside an exact needle match: it tells a half-remembered fact from none.
    """
    wanted = set(normalise_answer(reference).split())
    found = set(normalise_answer(prediction).split())
    return len(wanted & found) / len(wanted) if wanted else 0.0
