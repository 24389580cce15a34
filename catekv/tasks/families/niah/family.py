"""Needle in a haystack as a family of one task."""

from __future__ import annotations

from catekv.tasks import metrics
from catekv.tasks.core.sample import Sample
from catekv.tasks.core.task import Family, Task, no_files
from catekv.tasks.families.niah.building import generate
from catekv.tasks.families.niah.options import HaystackOptions


def score(prediction: str, sample: Sample) -> dict[str, float]:
    """Scores of one answer.

    Returns:
        ``official``: 1 if the answer stands in the prediction, else 0 (with several needles the
        share of their answers); ``strict``: the same for whole words; ``keyword_recall``: share of
        the answer's words that the prediction has.
    """
    references = list(sample.outputs)
    return {
        "official": metrics.string_match_all(prediction, references),
        "strict": metrics.strict_match_all(prediction, references),
        "keyword_recall": metrics.keyword_recall(prediction, " ".join(references)),
    }


TASK = Task(
    name="niah",
    options=HaystackOptions(),
    max_new_tokens=64,
    metric="all",
    generate=generate,
    score=score,
)
FAMILY = Family(
    TASK.name,
    (TASK,),
    no_files(
        "there is no official sample file. Scores of the original test are read by "
        "catekv.tasks.families.niah.results.read_results"
    ),
    rank=2,
)
