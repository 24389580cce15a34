"""RepoQA: which function of a repository an answer is (nltk's sentence BLEU, smoothing 4)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

#: BLEU from which on the answer counts as the function
PASSES = 0.8
_FENCED = re.compile(r"```[^\n]*\n(.*?)```", re.DOTALL)


class Match(NamedTuple):
    """The function that an answer is most like, how much, and whether that is the one asked for."""

    best: str | None
    bleu: float
    passed: bool


def best_match(prediction: str, functions: Mapping[str, str], target: str) -> Match:
    """Compare an answer with all functions of the row.

    Args:
        prediction: its first fenced block counts, or all of it where there is none.
        functions: source by name; of equal ones the first counts.
        target: name of the function that was described.

    Words are split at white space and comments stay, as in SCBench's scorer (arXiv 2412.10319).
    """
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    block = _FENCED.search(prediction)
    words = (block.group(1) if block else prediction).split()
    smoothing = SmoothingFunction().method4
    best, largest = None, 0.0
    for name, source in functions.items():
        bleu = 0.0
        if words and source.split():
            bleu = float(sentence_bleu([source.split()], words, smoothing_function=smoothing))
        if best is None or bleu > largest:
            best, largest = name, bleu
    return Match(best, largest, best == target and largest >= PASSES)
