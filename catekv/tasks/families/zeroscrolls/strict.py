"""A stricter reading of ZeroSCROLLS answers, beside the published rules."""

from __future__ import annotations

import re

from catekv.tasks.metrics import zeroscrolls

_LETTER = re.compile(r"(?<!\w)[A-D](?!\w)")
_PERCENTAGE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)\s*%")
_ONLY_NUMBERS = re.compile(r"[\d\s,.]+")


def strict(task: str, prediction: str, official: float) -> float:
    """The official score, or 0 for an answer that names several.

    ``quality``: the answer names one letter only. ``space_digest``: one percentage only.
    ``book_sum_sort``: nothing but the numbers. The other rules have no leniency.
    """
    rule = zeroscrolls.METRICS[task]
    single = True
    if rule == "letter":
        single = len(set(_LETTER.findall(prediction))) == 1
    elif rule == "percentage":
        single = len({float(number) for number in _PERCENTAGE.findall(prediction)}) == 1
    elif rule == "order":
        single = _ONLY_NUMBERS.fullmatch(prediction.strip()) is not None
    return official if single else 0.0
