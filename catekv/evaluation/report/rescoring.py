"""Scoring stored predictions again, without a model and without the data."""

from __future__ import annotations

import dataclasses

from catekv.evaluation.records.records import Record


def rescored(record: Record) -> Record:
    """The record with the scores of this version's metrics; a failed one as it is."""
    from catekv.evaluation.run.asking import scored
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
    return dataclasses.replace(record, **scored(record.texts, sample))
