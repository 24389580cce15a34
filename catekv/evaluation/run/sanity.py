"""Columns that test the task and not a method: what must score 100, what 0, and what about 0.

``oracle`` answers with the references and ``empty`` with nothing; any other score than 100 and 0
means that the metric or the sample is broken. ``random`` answers with another sample's reference
and ``no context`` is the model without the context: both show what a score is worth that needs no
reading. They are about 0 for answers that cannot be guessed, and the share of the most frequent
answer for classes, multiple choice and yes or no.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from catekv import tasks
from catekv.evaluation.columns.settings import RunSettings, stable_hash
from catekv.evaluation.records.records import SKIPPED, Record
from catekv.evaluation.run.asking import Trial, ask, scored, text_of
from catekv.evaluation.run.batches import Unit
from catekv.evaluation.run.measured import described
from catekv.methods import create
from catekv.tasks.core.randomness import generator
from catekv.tasks.core.sample import Sample

if TYPE_CHECKING:
    from catekv.model import CateKVModel

ORACLE, EMPTY, RANDOM, NO_CONTEXT = "[oracle]", "[empty]", "[random]", "[no context]"
LABELS = (ORACLE, EMPTY, RANDOM, NO_CONTEXT)
#: scores count from 0 to 1; what metrics lose to their own rounding is less
_ROUNDING = 1e-5
#: other samples that are looked at for an answer that is none of this sample's
_LOOKS = 8


def columns(settings: RunSettings) -> dict[str, dict[str, Any]]:
    """The entries of the manifest's ``methods``."""
    return {
        label: {
            "hash": _hash(settings, label),
            "name": f"sanity {label.strip('[]')}",
            "options": {},
            "mask": None,
        }
        for label in LABELS
    }


def blanks(unit: Unit, position: int, settings: RunSettings) -> list[Record]:
    """The records of one sample before anything was measured, one per column."""
    return [
        Record(
            task=unit.cell.task,
            length=unit.cell.length,
            index=position,
            method=label,
            question=unit.question,
            method_hash=_hash(settings, label),
        )
        for label in LABELS
    ]


def _hash(settings: RunSettings, label: str) -> str:
    return stable_hash([settings.configuration(), {"sanity": label}])


def measure(blank: Record, unit: Unit, model: CateKVModel, settings: RunSettings) -> Record:
    """Fill in the record of one column."""
    sample = unit.cell.sample(blank.index)
    fields: dict[str, Any] = {}
    if blank.method == ORACLE:
        prediction = oracle(sample)
    elif blank.method == EMPTY:
        prediction = ""
    elif blank.method == RANDOM:
        prediction = random_answer(unit, blank.index, settings.seed)
    elif not sample.question:
        reason = "the file does not mark where the context ends, so it cannot be left out"
        return dataclasses.replace(
            blank, error={"type": SKIPPED, "message": reason, "phase": "prompt"}
        )
    else:
        prediction, fields = _without_context(sample, model, settings)
    fields |= {"prediction": prediction, **scored([prediction], sample)}
    return dataclasses.replace(blank, **described(sample), **fields)


def oracle(sample: Sample) -> str:
    """The best of the answers that can be made of the references: each of them, plain and with a
    full stop, and all of them as a list. (A task counts one reference or all; a list may be read
    line by line; some rules take a letter for a choice only if a stop follows, or a list only
    behind its marker.)"""
    outputs = list(sample.outputs)
    marked = f"Final Answer: [{', '.join(outputs)}]"
    plain = [", ".join(outputs), "\n".join(outputs), *outputs]
    candidates = [*plain, *(f"{output}." for output in outputs), marked]
    return max(candidates, key=lambda text: tasks.score(text, sample)["official"])


def random_answer(unit: Unit, position: int, seed: int) -> str:
    """Another sample's first reference, if possible one that is none of this sample's own."""
    cell = unit.cell
    own = {text.strip().lower() for text in cell.sample(position).outputs}
    chance = generator("sanity", seed, cell.task, cell.length, position)
    others = [other for other in range(cell.count) if other != position]
    for other in chance.sample(others, min(_LOOKS, len(others))):
        outputs = cell.sample(other).outputs
        if outputs and outputs[0].strip().lower() not in own:
            return ", ".join(outputs) if len(own) > 1 else outputs[0]
    # a single sample, or one answer to everything: letters in a drawn order, of the same kind
    letters = list(cell.sample(position).outputs[0])
    chance.shuffle(letters)
    return "".join(letters)


def _without_context(
    sample: Sample, model: CateKVModel, settings: RunSettings
) -> tuple[str, dict[str, Any]]:
    asked = dataclasses.replace(sample, context="")
    trial = Trial.of(asked, model.tokenizer, "aware", settings.chat_template)
    context = model.prefill(trial.context_ids, method=create("full"))
    generation = ask(model, context, [trial], settings.max_new_tokens)
    sizes = {"prompt_tokens": trial.tokens, "new_tokens": len(generation.tokens)}
    return text_of(model, generation), sizes


def violations(records: Iterable[Record]) -> list[str]:
    """What makes the scores of a run invalid, one sentence per task, length and column."""
    scores: dict[tuple[str, int, str], list[float]] = {}
    for record in records:
        if record.method in (ORACLE, EMPTY) and record.official is not None:
            key = (record.task, record.length, record.method)
            scores.setdefault(key, []).append(record.official)
    found = []
    for (task, length, label), values in sorted(scores.items()):
        wanted = 1.0 if label == ORACLE else 0.0
        wrong = [value for value in values if abs(value - wanted) > _ROUNDING]
        if wrong:
            mean = 100 * sum(values) / len(values)
            where = f"{task} at {length} tokens" if length else task
            found.append(
                f"{label} scores {mean:.2f} instead of {100 * wanted:.0f} on {where} "
                f"({len(wrong)} of {len(values)} samples)"
            )
    return found
