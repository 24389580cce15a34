"""Substring and whole-word scores of RULER and of the CateKV family, all in [0, 1].

``string_match_all`` and ``string_match_part`` are RULER's substring tests, kept as they are so that
numbers can be compared. The ``strict_*`` forms beside them ask for whole words, because a substring
test finds "art" in "start" and a 7-digit number inside an 8-digit one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from catekv.tasks.metrics.words import as_list, normalise_answer

_CONTROL = re.compile(r"[\x00-\x1f]")
_END_MARKERS = ("<|eot_id|>", "</s>", "</s", "</")


def clean(prediction: str) -> str:
    """Strip, turn control characters into newlines, strip again (RULER)."""
    return _CONTROL.sub("\n", prediction.strip()).strip()


def clean_catekv(prediction: str) -> str:
    """As :func:`clean`, with end-of-text markers deleted first (CateKV and ShadowKV)."""
    for marker in _END_MARKERS:
        prediction = prediction.strip().replace(marker, "")
    return clean(prediction)


def string_match_all(prediction: str, references: str | Sequence[str]) -> float:
    """Share of references that occur in the prediction, case ignored (RULER ``all``)."""
    wanted = as_list(references)
    text = clean(prediction).lower()
    return sum(reference.lower() in text for reference in wanted) / len(wanted) if wanted else 0.0


def string_match_part(prediction: str, references: str | Sequence[str]) -> float:
    """1 if any reference occurs in the prediction, case ignored (RULER ``part``).

    An empty prediction scores 0: the CateKV and ShadowKV scripts also look for the prediction in
    the reference and so give it 1, which is not copied.
    """
    text = clean(prediction).lower()
    return float(any(reference.lower() in text for reference in as_list(references)))


def _has_word(text: str, reference: str) -> bool:
    words = r"\s+".join(re.escape(word) for word in reference.lower().split())
    return bool(words) and re.search(rf"(?<!\w){words}(?!\w)", text) is not None


def strict_match_all(prediction: str, references: str | Sequence[str]) -> float:
    """Share of references found with no letter, digit or underscore touching them."""
    wanted = as_list(references)
    text = clean(prediction).lower()
    return sum(_has_word(text, reference) for reference in wanted) / len(wanted) if wanted else 0.0


def strict_match_part(prediction: str, references: str | Sequence[str]) -> float:
    """1 if any reference is found with no letter, digit or underscore touching it."""
    text = clean(prediction).lower()
    return float(any(_has_word(text, reference) for reference in as_list(references)))


def answer_shaped(prediction: str, references: Sequence[str]) -> set[str]:
    """The different words of a prediction that look like the references.

    References of capitals only (variable names) admit words of capitals, lower-case letters only
    (common words) admit words in any case, both of the lengths that the references have; anything
    else admits every word.
    """
    text = clean(prediction)
    lengths = sorted({len(reference) for reference in references})
    if all(re.fullmatch(r"[A-Z]+", reference) for reference in references):
        words: Iterable[str] = re.findall(r"(?<!\w)[A-Z]+(?!\w)", text)
    elif all(re.fullmatch(r"[a-z]+", reference) for reference in references):
        words = re.findall(r"(?<!\w)[a-z]+(?!\w)", text.lower())
    else:
        return set(re.findall(r"\w+", text))
    return {word for word in words if len(word) in lengths}


def set_f1(prediction: str, references: Sequence[str]) -> float:
    """F1 between the set of references and the answer-shaped words of the prediction.

    Naming every variable finds all references but no longer scores 1.
    """
    wanted = set(references)
    found = answer_shaped(prediction, references)
    hits = len(wanted & found)
    return 2 * hits / (len(wanted) + len(found)) if hits else 0.0


def needle_score(prediction: str, reference: str) -> float:
    """1 if the normalised prediction starts with the reference or has it as a word (CateKV)."""
    found, wanted = normalise_answer(clean_catekv(prediction)), normalise_answer(reference)
    return float(bool(wanted) and (found.startswith(wanted) or wanted in found.split()))


def multi_number(prediction: str, references: str | Sequence[str]) -> float:
    """Share of references among the digit runs of the normalised prediction (CateKV)."""
    wanted = as_list(references)
    numbers = re.findall(r"\d+", normalise_answer(clean_catekv(prediction)))
    return sum(reference in numbers for reference in wanted) / len(wanted) if wanted else 0.0


def multi_words(prediction: str, references: str | Sequence[str]) -> float:
    """Share of references among the lower-cased words of the prediction (CateKV)."""
    wanted = as_list(references)
    words = re.findall(r"\w+", clean_catekv(prediction).lower())
    return sum(ref.lower() in words for ref in wanted) / len(wanted) if wanted else 0.0
