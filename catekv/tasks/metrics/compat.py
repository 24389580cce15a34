"""Scores of other harnesses that differ from the official ones, for comparison with their tables.

Never mix them with the scores of this package: each of them is a known defect or deviation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from catekv.tasks.metrics.substring import clean_catekv, string_match_all
from catekv.tasks.metrics.words import as_list

_NAMED = re.compile(r"The correct answer is (?:\(([A-D])\)|([A-D]))")


def string_match_part_catekv(prediction: str, references: str | Sequence[str]) -> float:
    """RULER's ``part`` as CateKV and ShadowKV count it.

    The prediction is also looked for in the reference, so an empty one scores 1.
    """
    text = clean_catekv(prediction).lower()
    wanted = [reference.lower() for reference in as_list(references)]
    return float(any(reference in text or text in reference for reference in wanted))


def string_match_part_lm_eval(prediction: str, references: str | Sequence[str]) -> float:
    """RULER's ``part`` in lm-eval: the share of references found, where any is enough for 1."""
    return string_match_all(prediction, references)


def clean_kvpress(prediction: str) -> str:
    """RULER's cleaning in kvpress: control characters vanish, which joins words across lines."""
    return re.sub(r"[\x00-\x1f]", "", prediction.strip()).strip()


def first_line_kvpress(prediction: str) -> str:
    """LongBench's first-line rule in kvpress: all leading white space goes, not only newlines."""
    return prediction.lstrip().split("\n", 1)[0]


def names_answer_kvpress(response: str, answer: str) -> float:
    """LongBench v2 in kvpress: any mention of the right letter counts.

    A response that names two letters is right for both.
    """
    text = response.replace("*", "")
    return float(any(answer in letters for letters in _NAMED.findall(text)))
