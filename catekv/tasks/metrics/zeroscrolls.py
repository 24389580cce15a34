"""Scores of ZeroSCROLLS.

The official metric code is not in its repository but beside its data set. The rules of
``space_digest`` and ``book_sum_sort`` were not checked against code: reports must mark them
(:data:`UNVERIFIED`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import combinations

from catekv.errors import UserError
from catekv.tasks.metrics.rouge import rouge_google
from catekv.tasks.metrics.words import as_list, qa_f1

#: task to the name of its metric
METRICS = {
    "gov_report": "rouge",
    "summ_screen_fd": "rouge",
    "qmsum": "rouge",
    "squality": "rouge",
    "qasper": "f1",
    "narrative_qa": "f1",
    "musique": "f1",
    "quality": "letter",
    "space_digest": "percentage",
    "book_sum_sort": "order",
}
#: tasks whose rule nobody compared with the official code
UNVERIFIED = ("space_digest", "book_sum_sort")
ROUGE_KINDS = ("rouge1", "rouge2", "rougeL")
_LETTER = re.compile(r"(?<!\w)[A-D](?!\w)")
_NUMBER = r"\d+(?:\.\d+)?"


def geometric_mean(values: Sequence[float]) -> float:
    """n-th root of the product of n numbers that are not negative; 0 if one is 0 or none is given.

    To build a table row from means of ROUGE-1, -2 and -L over samples instead of the mean of
    :func:`rouge_geometric` (the two differ), pass those three means.
    """
    product = 1.0
    for value in values:
        product *= value
    return product ** (1 / len(values)) if values else 0.0


def rouge_geometric(prediction: str, references: str | Sequence[str]) -> float:
    """Geometric mean of the F of ROUGE-1, -2 and -L (google, no stemmer); best reference."""
    return max(
        (
            geometric_mean(list(rouge_google(prediction, wanted, ROUGE_KINDS).values()))
            for wanted in as_list(references)
        ),
        default=0.0,
    )


def letter_accuracy(prediction: str, references: str | Sequence[str]) -> float:
    """1 if the first stand-alone letter A to D is also the first one of a reference.

    Raises:
        UserError: a reference without such a letter.
    """

    def letter(text: str) -> str | None:
        found = _LETTER.search(text)
        return found.group() if found else None

    wanted = as_list(references)
    right = [letter(reference) for reference in wanted]
    if None in right:
        raise UserError(f"quality: reference {wanted[right.index(None)]!r} names no letter A to D")
    return float(letter(prediction) in right)


def percentage_similarity(prediction: str, references: str | Sequence[str]) -> float:
    """0.5 ** (distance / 10) between the first percentage found and the reference; 0 if none.

    Raises:
        UserError: a reference without a number.
    """
    found = re.search(rf"({_NUMBER})\s*%", prediction)
    best = 0.0
    for wanted in as_list(references):
        number = re.search(_NUMBER, wanted)
        if number is None:
            raise UserError(f"space_digest: reference {wanted!r} holds no percentage")
        if found:
            distance = abs(float(found.group(1)) - float(number.group()))
            best = max(best, 0.5 ** (distance / 10))
    return best


def order_concordance(prediction: str, references: str | Sequence[str]) -> float:
    """Share of pairs that stand in the reference's order; 0 unless all its ids occur once each."""

    def ids(text: str) -> list[int]:
        return [int(number) for number in re.findall(r"\d{1,9}", text)]

    order = ids(prediction)
    best = 0.0
    for wanted in map(ids, as_list(references)):
        if not wanted or sorted(order) != sorted(wanted) or len(set(wanted)) < len(wanted):
            continue
        place = {number: position for position, number in enumerate(order)}
        right = [place[first] < place[second] for first, second in combinations(wanted, 2)]
        best = max(best, sum(right) / len(right) if right else 1.0)
    return best


_RULES: dict[str, Callable[[str, str | Sequence[str]], float]] = {
    "rouge": rouge_geometric,
    "f1": qa_f1,
    "letter": letter_accuracy,
    "percentage": percentage_similarity,
    "order": order_concordance,
}


def score(task: str, prediction: str, references: str | Sequence[str]) -> float:
    """The score of one answer; "zeroscrolls/" before the task is allowed.

    Raises:
        UserError: unknown task, or a reference that its rule cannot read.
    """
    name = task.removeprefix("zeroscrolls/")
    if name not in METRICS:
        raise UserError(f"unknown ZeroSCROLLS task {task!r}; available: {', '.join(METRICS)}")
    return _RULES[METRICS[name]](prediction, references)
