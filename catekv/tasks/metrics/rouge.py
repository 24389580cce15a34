"""ROUGE as two libraries count it; their numbers differ and must not be mixed.

* :func:`rouge_google` follows rouge_score 0.1.2: lower-case letters and digits, repeated words
  count, optional stemmer. Summarisation, ZeroSCROLLS and InfiniteBench use it.
* :func:`rouge_pltrdy` and :func:`rouge_l_pltrdy` follow rouge 1.0.1: case and punctuation stay,
  sentences end at full stops, every word counts once. LongBench uses it.

Both give 1 for equal texts (the second up to 1e-8) and 0 where there is nothing to count; with
several references the best one counts. They are counted here because both packages fail on
long texts (a table of all word pairs, a recursion over it), and neither counts both ways.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache

from catekv.errors import UserError
from catekv.tasks.metrics.subsequence import common_length, common_pairs
from catekv.tasks.metrics.words import as_list

GOOGLE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
PLTRDY = ("rouge-1", "rouge-2", "rouge-l")
_TOKEN = re.compile(r"[a-z0-9]+")
#: rouge 1.0.1 adds this to P + R, so that equal texts score 0.999999995
_EPSILON = 1e-8


class RougeScore(float):
    """F as a number, with ``precision``, ``recall`` and ``f`` beside it."""

    precision: float
    recall: float

    def __new__(cls, f: float, precision: float, recall: float) -> RougeScore:
        score = super().__new__(cls, f)
        score.precision = precision
        score.recall = recall
        return score

    def __getnewargs__(self) -> tuple[float, float, float]:  # type: ignore[override]
        return self.f, self.precision, self.recall

    @property
    def f(self) -> float:
        """F as a plain number."""
        return float(self)

    def parts(self) -> dict[str, float]:
        """``{"p": precision, "r": recall, "f": F}``."""
        return {"p": self.precision, "r": self.recall, "f": self.f}


NOTHING = RougeScore(0.0, 0.0, 0.0)


def _shares(hits: int, found: int, wanted: int, epsilon: float = 0.0) -> RougeScore:
    """F, P and R of ``hits`` among ``found`` words of the prediction and ``wanted`` ones."""
    if not hits:
        return NOTHING
    precision, recall = hits / found, hits / wanted
    f = 2 * precision * recall / (precision + recall + epsilon)
    return RougeScore(f, precision, recall)


def _grams(words: Sequence[str], size: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(size)), strict=False)


@cache
def _stemmer() -> Callable[[str], str]:
    """Porter's suffix stripping with NLTK's additions, the variant that rouge_score counts with."""
    # nltk loads slowly, and only summaries need it
    from nltk.stem.porter import PorterStemmer

    stemmer: Callable[[str], str] = PorterStemmer(PorterStemmer.NLTK_EXTENSIONS).stem
    return stemmer


@lru_cache(maxsize=100_000)
def stem(word: str) -> str:
    """The stem of a lower-case word; words of one or two letters stay as they are."""
    return _stemmer()(word)


def _tokens(text: str, stemmer: bool) -> list[str]:
    words = _TOKEN.findall(text.lower())
    return [stem(word) if len(word) > 3 else word for word in words] if stemmer else words


def _by_lines(found: list[list[str]], wanted: list[list[str]]) -> RougeScore:
    """rougeLsum: per reference line, the union of what it shares with every candidate line."""
    remaining = [Counter(word for line in lines for word in line) for lines in (found, wanted)]
    hits = 0
    for line in wanted:
        places = {i for other in found for i, _ in common_pairs(line, other)}
        for word in (line[i] for i in sorted(places)):
            if all(counts[word] > 0 for counts in remaining):
                hits += 1
                for counts in remaining:
                    counts[word] -= 1
    return _shares(hits, sum(map(len, found)), sum(map(len, wanted)))


def _google(kind: str, prediction: str, reference: str, stemmer: bool) -> RougeScore:
    if kind == "rougeLsum":
        found, wanted = (
            [_tokens(line, stemmer) for line in text.split("\n") if line]
            for text in (prediction, reference)
        )
        return _by_lines(found, wanted)
    words, others = _tokens(prediction, stemmer), _tokens(reference, stemmer)
    if kind == "rougeL":
        return _shares(common_length(others, words), len(words), len(others))
    size = int(kind.removeprefix("rouge"))
    found_grams, wanted_grams = Counter(_grams(words, size)), Counter(_grams(others, size))
    hits = (found_grams & wanted_grams).total()
    return _shares(hits, found_grams.total(), wanted_grams.total())


def rouge_google(
    prediction: str,
    references: str | Sequence[str],
    kinds: Sequence[str] = GOOGLE,
    *,
    stemmer: bool = False,
) -> dict[str, RougeScore]:
    """ROUGE as rouge_score 0.1.2 counts it.

    Args:
        kinds: of :data:`GOOGLE`; ``rougeLsum`` takes every line as a sentence, ``rougeL`` takes
            the text as one.
        stemmer: strip suffixes of words longer than three letters (Porter).

    Returns:
        F (with precision and recall) per kind, each of the reference that is best for it.

    Raises:
        UserError: an unknown kind.
    """
    _check(kinds, GOOGLE)
    wanted = as_list(references)
    return {
        kind: max(
            (_google(kind, prediction, reference, stemmer) for reference in wanted),
            default=NOTHING,
        )
        for kind in kinds
    }


def _sentences(text: str) -> list[str]:
    """Pieces between full stops, white space squeezed; a piece of spaces stays, as ""."""
    return [" ".join(piece.split()) for piece in text.split(".") if piece]


def _words(sentences: Iterable[str]) -> list[str]:
    return [word for sentence in sentences for word in sentence.split(" ")]


def _unique_union(found: list[str], wanted: list[str]) -> RougeScore:
    """rouge-l: the different words in any common subsequence of two sentences."""
    candidates = [sentence.split(" ") for sentence in found]
    vocabularies = [set(words) for words in candidates]
    union: set[str] = set()
    for reference in (sentence.split(" ") for sentence in wanted):
        own = set(reference)
        for words, vocabulary in zip(candidates, vocabularies, strict=True):
            # a pair can only add words that both have and that are not yet in the union
            if not (own & vocabulary) <= union:
                union.update(words[i] for i, _ in common_pairs(words, reference))
    every, others = set().union(*vocabularies), set(_words(wanted))
    return _shares(len(union), len(every), len(others), _EPSILON)


def _pltrdy(kind: str, prediction: str, reference: str) -> RougeScore:
    found, wanted = _sentences(prediction), _sentences(reference)
    if not found or not wanted:  # the original raises; LongBench counts that as 0
        return NOTHING
    if kind == "rouge-l":
        return _unique_union(found, wanted)
    size = int(kind.removeprefix("rouge-"))
    grams, others = set(_grams(_words(found), size)), set(_grams(_words(wanted), size))
    return _shares(len(grams & others), len(grams), len(others), _EPSILON)


def rouge_pltrdy(
    prediction: str, references: str | Sequence[str], kinds: Sequence[str] = PLTRDY
) -> dict[str, RougeScore]:
    """ROUGE as rouge 1.0.1 counts it; ``kinds`` are of :data:`PLTRDY`.

    Where the original raises (an empty text, only full stops) every number is 0. Where it exceeds
    the recursion limit (long texts without full stops), the true value is returned.

    Raises:
        UserError: an unknown kind.
    """
    _check(kinds, PLTRDY)
    wanted = as_list(references)
    return {
        kind: max(
            (_pltrdy(kind, prediction, reference) for reference in wanted),
            default=NOTHING,
        )
        for kind in kinds
    }


def rouge_l_pltrdy(prediction: str, references: str | Sequence[str]) -> RougeScore:
    """ROUGE-L of rouge 1.0.1, the score of LongBench's summaries."""
    return rouge_pltrdy(prediction, references, ("rouge-l",))["rouge-l"]


def _check(kinds: Sequence[str], valid: Sequence[str]) -> None:
    unknown = [kind for kind in kinds if kind not in valid]
    if unknown:
        raise UserError(f"unknown kind of ROUGE {unknown[0]!r}; valid: {', '.join(valid)}")
