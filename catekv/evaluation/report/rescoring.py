"""Scoring stored predictions again, without a model and without the data."""

from __future__ import annotations

import dataclasses

from catekv.evaluation.records.records import Record


def rescored(record: Record) -> Record:
    """The record with the scores of this version's metrics; a failed one as it is."""
    from catekv import tasks
    from catekv.tasks.core.sample import Sample

    if record.error is not None:
        return record
    sample = Sample(
        task=record.task,
        index=record.index,
        context="",
        question="",
        answer_prefix="",
        outputs=record.references,
        max_new_tokens=0,
        length=record.prompt_tokens,
        target_length=record.target_length,
        metric=record.metric,
        wording=record.wording,
        depths=record.depths,
        metadata=record.metadata,
        scoring=record.scoring,
    )
    scores = tasks.score(record.prediction, sample)
    return dataclasses.replace(
        record,
        official=scores["official"],
        strict=scores.get("strict"),
        scores={k: v for k, v in scores.items() if k not in ("official", "strict")},
    )
