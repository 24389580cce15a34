"""Scores of one answer, from the sample's ``outputs`` and ``scoring`` alone."""

from __future__ import annotations

from collections.abc import Callable

from catekv.tasks.core.sample import Sample
from catekv.tasks.families.longbench.table import facts
from catekv.tasks.metrics import longbench, longbench_v2
from catekv.tasks.metrics.chinese import normalise_chinese
from catekv.tasks.metrics.words import normalise_answer
from catekv.tasks.wording.spelling import spelled


def score(prediction: str, sample: Sample) -> dict[str, float]:
    """Scores of v1 and -E.

    Returns:
        ``official``: the published metric, the best over the references;
        ``strict``: for trec and lsht without the published loop's slip, else the same (these
        scores compare whole words already);
        ``exact_match``: for questions, whether the normalised answer equals a reference;
        ``indel``: for code, the score by insertions and deletions, which other installations of
        the original give.
    """
    known = facts(sample.task)
    classes = sample.scoring.get("all_classes")
    backend = str(sample.scoring.get("backend", "difflib"))
    spelling = sample.scoring.get("spelling")
    prediction = spelled(prediction, spelling)
    references = tuple(spelled(wanted, spelling) for wanted in sample.outputs)

    def rated(strict: bool = False, by: str = backend) -> float:
        return longbench.score(
            known.name, prediction, references, classes, strict=strict, backend=by
        )

    scores = {"official": rated()}
    strict = known.metric == "classification"
    scores["strict"] = rated(strict=True) if strict else scores["official"]
    if known.metric == "edit_similarity":
        scores["indel"] = rated(by="indel")
    if known.metric in ("qa_f1", "qa_f1_zh"):
        normalise = normalise_answer if known.metric == "qa_f1" else normalise_chinese
        text = longbench.first_line(prediction) if known.first_line else prediction
        scores["exact_match"] = _exact(text, references, normalise)
    return scores


def _exact(prediction: str, references: tuple[str, ...], normalise: Callable[[str], str]) -> float:
    found = normalise(prediction)
    return float(bool(found) and any(found == normalise(wanted) for wanted in references))


def score_choice(prediction: str, sample: Sample) -> dict[str, float]:
    """Scores of v2.

    Returns:
        ``official``: whether the named letter is the right one; ``strict``: the same where no
        letter may follow it; ``compensated``: an answer that names none is worth a guess, 0.25.
    """
    answer = str(sample.scoring["answer"])
    prediction = spelled(prediction, sample.scoring.get("spelling"))
    return {
        "official": longbench_v2.score(prediction, answer),
        "strict": longbench_v2.score(prediction, answer, strict=True),
        "compensated": longbench_v2.score(prediction, answer, compensated=True),
    }
