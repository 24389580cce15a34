"""RULER scores as other harnesses compute them, for comparison with their tables only."""

from __future__ import annotations

from catekv.tasks.core.sample import Sample
from catekv.tasks.metrics import compat, string_match_all, string_match_part


def compat_scores(prediction: str, sample: Sample) -> dict[str, float]:
    """Deviating scores of one answer, each in [0, 1]; none of them is RULER's.

    Returns:
        ``lm_eval``: its ``part`` is the share of references found; ``kvpress``: control characters
        are deleted, which joins words across lines; ``catekv``: for ``part`` the prediction is also
        looked for in the reference, so that an empty one scores 1 (only there it differs from what
        :func:`catekv.tasks.score` reports under this name).
    """
    references = list(sample.outputs)
    part = sample.metric == "part"
    official = string_match_part if part else string_match_all
    scores = {
        "lm_eval": (compat.string_match_part_lm_eval if part else string_match_all)(
            prediction, references
        ),
        "kvpress": official(compat.clean_kvpress(prediction), references),
    }
    if part:
        scores["catekv"] = compat.string_match_part_catekv(prediction, references)
    return scores
