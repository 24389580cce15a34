"""Whether the chosen mask is better than heads drawn at random and than its own reverse."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from statistics import fmean

from catekv.calibration.head_masks.answers import Answer
from catekv.evaluation.report.statistics import (
    DIFFERENCES,
    Estimate,
    Told,
    bootstrap_average,
    paired_difference,
    told,
)

#: The controls by their names in sentences.
RANDOM, REVERSED = "random heads", "its own reverse"
BETTER = "better than"
_WORDS: dict[Told, str] = {
    "above": BETTER,
    "below": "worse than",
    "alike": "not distinguishable from",
    "unknown": "not distinguishable from",
}


def contrasts(
    answers: Sequence[Answer],
    chosen: str,
    controls: Mapping[str, Collection[str]],
    tasks: Collection[str],
) -> dict[str, Estimate]:
    """Accuracy of the chosen mask minus that of every control, in [-1, 1], with 95 % intervals.

    Paired by sample; question modes, and the masks of a control, are averaged first.

    Args:
        chosen: label of the chosen mask. controls: name -> labels of the masks it stands for.
        tasks: those that decide; averaged with equal weights.
    """
    found = {}
    for name, labels in controls.items():
        differences = {
            task: paired_difference(
                _by_sample(answers, {chosen}, task), _by_sample(answers, labels, task)
            )
            for task in tasks
        }
        estimate = bootstrap_average(differences, scale=DIFFERENCES)
        if estimate is not None:
            found[name] = estimate
    return found


def _by_sample(answers: Sequence[Answer], labels: Collection[str], task: str) -> dict[int, float]:
    scores: dict[int, list[float]] = {}
    for answer in answers:
        if answer.label in labels and answer.task == task:
            scores.setdefault(answer.index, []).append(answer.official)
    return {index: fmean(values) for index, values in scores.items()}


def sentence(found: Mapping[str, Estimate]) -> str:
    """What the contrasts say about the chosen mask, with what to do where they say nothing."""
    said: dict[str, list[str]] = {}
    for name, estimate in found.items():
        words = (
            f"{name} ({100 * estimate.mean:+.1f} points, {100 * estimate.low:+.1f} .. "
            f"{100 * estimate.high:+.1f})"
        )
        said.setdefault(_WORDS[told(estimate.low, estimate.high)], []).append(words)
    parts = [f"{words} {' and '.join(names)}" for words, names in said.items()]
    count = next(iter(found.values())).count
    more = "More --held-out-samples or a larger --length may tell."
    return (
        f"The chosen mask is {', '.join(parts)}, on the {count} held-out samples that chose it."
        + ("" if set(said) == {BETTER} else f" {more}")
    )
