"""Edit similarity of code lines, by the two algorithms behind published numbers.

LongBench calls a library that takes Levenshtein's package where that is installed and ``difflib``
elsewhere. They disagree ("tide" and "diet": 0.50 and 0.25), so every result must name its backend.
Neither needs that package: of equally long matches the standard library's ``difflib`` takes the
earliest, and insertions and deletions follow from the common subsequence that ROUGE needs too.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

from catekv.errors import UserError
from catekv.tasks.metrics.subsequence import common_length
from catekv.tasks.metrics.words import as_list

BACKENDS = ("difflib", "indel")
_COMMENT_SIGNS = ("`", "#", "//")


def code_line(prediction: str) -> str:
    """The first line without a backtick, ``#`` or ``//``, leading newlines removed; "" if none."""
    for line in prediction.lstrip("\n").split("\n"):
        if not any(sign in line for sign in _COMMENT_SIGNS):
            return line
    return ""


def indel_ratio(first: str, second: str) -> float:
    """1 - (insertions + deletions) / (sum of lengths): twice the common subsequence over the sum.

    Equal texts, two empty ones included, give 1.
    """
    if first == second:
        return 1.0
    return 2 * common_length(first, second) / (len(first) + len(second))


def text_ratio(first: str, second: str, backend: str = "difflib") -> float:
    """Similarity of two texts in whole percent, as a share; one empty text gives 0.

    Raises:
        UserError: a backend that is not in :data:`BACKENDS`.
    """
    if backend not in BACKENDS:
        raise UserError(f"unknown backend {backend!r}; valid: {', '.join(BACKENDS)}")
    if first == second:
        return 1.0
    if not first or not second:
        return 0.0
    if backend == "difflib":
        return round(100 * SequenceMatcher(None, first, second).ratio()) / 100
    return round(100 * indel_ratio(first, second)) / 100


def edit_similarity(
    prediction: str, references: str | Sequence[str], backend: str = "difflib"
) -> float:
    """LongBench's code score: :func:`code_line` of the prediction against the next line.

    ``backend="indel"`` gives the numbers of installations with Levenshtein's package.
    """
    line = code_line(prediction)
    return max((text_ratio(line, wanted, backend) for wanted in as_list(references)), default=0.0)
