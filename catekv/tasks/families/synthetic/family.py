"""``synthetic`` as a family of one task."""

from __future__ import annotations

from catekv.tasks import metrics
from catekv.tasks.core.sample import Sample
from catekv.tasks.core.task import Family, Task
from catekv.tasks.families.synthetic.building import generate
from catekv.tasks.families.synthetic.options import SyntheticOptions


def score(prediction: str, sample: Sample) -> dict[str, float]:
    """Scores of one answer (its new tokens alone).

    Returns:
        ``official``: 1 if the code stands in the answer; ``strict``: 1 if no letter, digit or
        underscore touches it there; ``exact``: 1 if the answer is nothing but the code. The
        published accuracy compared prompt and answer together with the code and was always 0.
    """
    (code,) = sample.outputs
    return {
        "official": metrics.string_match_all(prediction, code),
        "strict": metrics.strict_match_all(prediction, code),
        "exact": float(prediction.strip() == code),
    }


TASK = Task(
    name="synthetic",
    options=SyntheticOptions(),
    max_new_tokens=50,
    metric="all",
    generate=generate,
    score=score,
)
FAMILY = Family(
    TASK.name,
    (TASK,),
    rank=3,
)
