"""Validation and test samples: drawn once, written down, never mixed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from catekv import tasks
from catekv.calibration.cokv.split import (
    SCORE_STREAM,
    SampleSet,
    Split,
    find_split,
    read_splits,
    refuse_overlap,
    write_splits,
)
from catekv.commands.ruler_files import load_tokenizer
from catekv.errors import UserError
from catekv.evaluation.run.cells import sample_hash
from catekv.models import embedded

SAMPLES = SampleSet("ruler/niah_single_1", 96, 20, seed=7)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(str(embedded.path()))


@pytest.fixture(scope="module")
def split(tokenizer: Any) -> Split:
    return Split.make(SAMPLES, SAMPLES.build(tokenizer))


def test_fifteen_percent_are_for_validation(split: Split) -> None:
    assert len(split.validation) == 3
    assert len(split.test) == 17
    assert sorted([*split.validation, *split.test]) == list(range(20))
    assert not set(split.validation.values()) & set(split.test.values())


def test_a_split_follows_its_seed(split: Split, tokenizer: Any) -> None:
    built = SAMPLES.build(tokenizer)
    assert Split.make(SAMPLES, built) == split
    others = [Split.make(SAMPLES, built, seed=seed).validation for seed in range(5)]
    assert any(other != split.validation for other in others)


def test_a_split_comes_back_from_its_file(split: Split, tokenizer: Any, tmp_path: Path) -> None:
    path = write_splits(tmp_path / "deep" / "split.json", [split])
    assert read_splits(path) == {SAMPLES.task: split}
    found = find_split(path, SAMPLES.task).build("validation", tokenizer)
    assert [sample.index for sample in found] == list(split.validation)
    with pytest.raises(UserError, match="has no split of ruler/vt; it has ruler/niah_single_1"):
        find_split(path, "ruler/vt")
    with pytest.raises(UserError, match="use validation or test"):
        split.build("training", tokenizer)


def test_equal_samples_stay_together(tokenizer: Any) -> None:
    built = SAMPLES.build(tokenizer)[:6]
    split = Split.make(SAMPLES, [*built, *built], 0.5)
    assert len(split.validation) == 6
    assert not set(split.validation.values()) & set(split.test.values())


@pytest.mark.parametrize("role", ["validation", "test"])
def test_an_overlapping_split_is_refused(split: Split, tmp_path: Path, role: str) -> None:
    path = write_splits(tmp_path / "split.json", [split])
    content = json.loads(path.read_text())
    parts = content["splits"][SAMPLES.task]
    other = "test" if role == "validation" else "validation"
    position, digest = next(iter(parts[other].items()))
    parts[role][position] = digest
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"sample {position} in validation and in test"):
        read_splits(path)
    del parts[role][position]
    parts[role]["99"] = digest
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="samples of the same contents in validation and in test"):
        read_splits(path)


def test_testing_on_validation_samples_is_refused(split: Split, tokenizer: Any) -> None:
    recipe = split.validation.values()
    refuse_overlap(recipe, split.build("test", tokenizer))
    with pytest.raises(UserError, match="3 samples to test on"):
        refuse_overlap(recipe, SAMPLES.build(tokenizer))


def test_samples_that_changed_are_refused(split: Split, tokenizer: Any) -> None:
    other = Split(SampleSet("ruler/niah_single_1", 96, 20, 8), 42, split.validation, split.test)
    with pytest.raises(UserError, match="is not the one that the split was made of"):
        other.build("test", tokenizer)
    fewer = Split(SampleSet("ruler/niah_single_1", 96, 2, 7), 42, split.validation, split.test)
    with pytest.raises(UserError, match="is not the one that the split was made of"):
        fewer.build("test", tokenizer)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "cannot read"), ('{"splits": {"a": {}}}', "cannot read"), ("[]", "cannot read")],
)
def test_what_is_no_split_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_splits(path)


def test_scores_without_a_split_never_see_a_test_sample(tokenizer: Any) -> None:
    test = tasks.build(SAMPLES.task, tokenizer, SAMPLES.length, SAMPLES.count, SAMPLES.seed)
    assert SAMPLES.build(tokenizer) == test
    drawn = dataclasses.replace(SAMPLES, stream=SCORE_STREAM).build(tokenizer)
    refuse_overlap([sample_hash(sample) for sample in drawn], test)
    with pytest.raises(UserError, match="0 samples of ruler/niah_single_1 are none"):
        dataclasses.replace(SAMPLES, count=0).build(tokenizer)


def test_splits_need_two_parts(tokenizer: Any) -> None:
    built = SAMPLES.build(tokenizer)
    with pytest.raises(UserError, match="leaves one part empty"):
        Split.make(SAMPLES, built, 1.0)
    with pytest.raises(UserError, match="has no test samples"):
        Split.make(SAMPLES, built[:1])
