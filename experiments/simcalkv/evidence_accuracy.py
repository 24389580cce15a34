"""Accuracy at equal memory on the embedded model, for the evidence."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from catekv import tasks
from catekv.calibration.head_masks.answers import FULL, score_methods
from catekv.evaluation.columns.defaults import EMBEDDED_TASKS, method_defaults
from catekv.evaluation.run.asking import split_prompt
from catekv.evaluation.run.request import Request
from catekv.evaluation.run.session import open_model
from catekv.methods import Method, ModelShape
from catekv.tasks.core.prompt import encode
from experiments.simcalkv.journal import Measured, Rows
from experiments.simcalkv.kv_methods import Choice

if TYPE_CHECKING:
    from catekv.model import CateKVModel
    from catekv.tasks.core.sample import Sample

RATIOS = (0.4, 0.8)
LENGTH = 1024


def _merging(**options: Any) -> Choice:
    return Choice("SimCalKV", 0.0, options=tuple(options.items()))


#: compared at equal memory, by name in the table
COMPARED: dict[str, Choice] = {
    "simcalkv, key_const": _merging(),
    "simcalkv, none": _merging(calibration="none"),
    "simcalkv, logit": _merging(calibration="logit"),
    "simcalkv, logit, uniform": _merging(calibration="logit", key_mean="uniform"),
    "simcalkv, logit, causal": _merging(calibration="logit", causal_normalise=True),
    "simcalkv, logit, recent 64": _merging(calibration="logit", protect_recent=64),
    "simcalkv, evict only": _merging(calibration="none", threshold=1.0),
    **{
        name: Choice(name, 0.0)
        for name in ("keepkv", "cam", "h2o", "snapkv", "adakv", "streaming_llm")
    },
}


def accuracy_part(samples: int, journal: Rows, say: Callable[[str], None]) -> dict[str, Any]:
    """Scores at equal memory on the embedded model, question after and before compression.

    Every prompt is in the journal once it is measured; those which it holds are taken from there.
    """
    model = open_model(Request(dtype="float32", device="cpu"))
    scores: dict[tuple[str, str, float], list[float]] = {}
    full: dict[str, list[float]] = {"agnostic": [], "aware": []}
    prompts = (
        sample
        for task in EMBEDDED_TASKS
        for sample in tasks.build(task, model.tokenizer, LENGTH, samples, seed=11)
    )
    for row, sample in enumerate(prompts):
        if row not in journal.rows:
            found = {question: _scores(model, sample, question) for question in full}
            journal.append(Measured(row, found))
        for question, found in journal.rows[row].value.items():
            for label, score in found.items():
                if label == FULL:
                    full[question].append(score)
                    continue
                name, _, ratio = label.rpartition("|")
                scores.setdefault((name, question, float(ratio)), []).append(score)
        say(f"{sample.task} {sample.index}")
    return {
        "full": {question: statistics.fmean(values) for question, values in full.items()},
        "rows": [
            {"method": name, "question": question, "ratio": ratio,
             "score": statistics.fmean(values), "samples": len(values)}
            for (name, question, ratio), values in scores.items()
        ],
        "tasks": list(EMBEDDED_TASKS),
        "length": LENGTH,
        "samples_per_task": samples,
    }  # fmt: skip


def _scores(model: CateKVModel, sample: Sample, question: str) -> dict[str, float]:
    """Official scores of one prompt, by method and ratio."""
    tokens = len(split_prompt(encode(sample, model.tokenizer), question)[0])
    compared = {
        f"{name}|{ratio}": equal_memory(replace(choice, ratio=ratio), tokens, model.shape)
        for name, choice in COMPARED.items()
        for ratio in RATIOS
    }
    answers = score_methods(model, [sample], compared, [question])
    return {answer.label: answer.official for answer in answers}


def equal_memory(choice: Choice, tokens: int, shape: ModelShape) -> Method:
    """A method with its options for the embedded model, at a choice's memory."""
    known = () if choice.name == "simcalkv" else method_defaults(True).get(choice.name, {}).items()
    choice = replace(choice, options=(*choice.options, *known))
    return choice.of_length(choice.method(), tokens, shape)
