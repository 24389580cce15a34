"""Scores of answers by data set, under the published names, each a mean in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from catekv.tasks.metrics import longbench, summaries
from experiments.simcalkv.benchmarks import Example, find
from experiments.simcalkv.bleu import corpus_bleu

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def sample_scores(dataset: str, answer: str, example: Example) -> dict[str, float]:
    """Scores of one answer: ROUGE by kind, ``accuracy``, ``f1`` or ``edit_similarity``."""
    known = find(dataset)
    if known.task is None:
        return {"accuracy": float(answer in example.references)}
    name = known.task.split("/")[1]
    if known.metric == "rouge":
        found = summaries.score(name, answer, example.references)
        return {kind: found[kind] for kind in ROUGE}
    official = longbench.score(name, answer, example.references, example.classes or None)
    return {"edit_similarity" if known.metric == "bleu" else known.metric: official}


def dataset_metrics(
    dataset: str, answers: Sequence[str], examples: Sequence[Example]
) -> dict[str, float | dict[str, float]]:
    """``{"rouge": {kind: mean}}``, ``{"accuracy": mean}``, ``{"f1": mean}``, or ``{"bleu": ...}``
    of all answers together with the mean ``edit_similarity``, which is LongBench's own score."""
    rows = [
        sample_scores(dataset, answer, example)
        for answer, example in zip(answers, examples, strict=True)
    ]
    means = {name: fmean(row[name] for row in rows) for name in (rows[0] if rows else {})}
    metric = find(dataset).metric
    if metric == "rouge":
        return {"rouge": means}
    if metric == "bleu":
        references = [example.references[0] for example in examples]
        return {"bleu": corpus_bleu(answers, references), **means}
    return dict(means)
