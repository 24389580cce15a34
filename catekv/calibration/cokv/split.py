"""Which samples scores and alpha are chosen on, and which ones results are measured on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from catekv import tasks
from catekv.errors import UserError
from catekv.evaluation.options import MOST_SAMPLES, MOST_TOKENS
from catekv.evaluation.run.cells import sample_hash
from catekv.files import read_object, write_json
from catekv.tasks.core.sample import Sample

#: Share of the samples that scores and alpha are chosen on.
VALIDATION_SHARE = 0.15
ROLES = ("validation", "test")
#: Of samples that are drawn for scores without a split: generated tasks never share one of them
#: with the stream that is tested on.
SCORE_STREAM = "cokv-score"


@dataclass(frozen=True)
class SampleSet:
    """How samples are made or read.

    Attributes:
        task: name of a task, or path of a JSONL file.
        length: tokens, or 0 for a file or for rows at their own length.
        count: how many, from index 0 on. seed: of the samples.
        options: of the task, e.g. ``source`` or ``path``.
        stream: of the random draws; a split is made of the samples that are tested on.
    """

    task: str
    length: int
    count: int
    seed: int = 42
    options: dict[str, Any] = field(default_factory=dict)
    stream: str = "test"

    def __post_init__(self) -> None:
        most = {"length": MOST_TOKENS, "count": MOST_SAMPLES, "seed": 2**63}
        for name, limit in most.items():
            number = getattr(self, name)
            if type(number) is not int or abs(number) > limit:
                raise UserError(f"{name} of the samples of {self.task} is no number up to {limit}")
        if not (isinstance(self.task, str) and isinstance(self.options, dict)):
            raise UserError(f"the task or the options of samples are none: {self.task!a}")

    def build(self, tokenizer: Any) -> list[Sample]:
        """The samples, in order (fewer where the rows end).

        Raises:
            UserError: unknown task, unreadable file, or no samples at all.
        """
        if self.count < 1:
            raise UserError(f"{self.count} samples of {self.task} are none; use 1 or more")
        if self.task.endswith((".jsonl", ".json")):
            found = list(tasks.read(self.task))[: self.count]
        else:
            found = tasks.build(
                self.task,
                tokenizer,
                self.length,
                self.count,
                self.seed,
                stream=self.stream,
                **self.options,
            )
        if not found:
            raise UserError(f"{self.task} has no samples; give a task or file that has some")
        return found


@dataclass(frozen=True)
class Split:
    """A task's samples in two parts, by their position and by the hash of their contents."""

    samples: SampleSet
    seed: int
    validation: dict[int, str]
    test: dict[int, str]

    def __post_init__(self) -> None:
        both = {*self.validation} & {*self.test}
        same = {*self.validation.values()} & {*self.test.values()}
        if both or same:
            what = f"sample {min(both)}" if both else "samples of the same contents"
            raise UserError(
                f"the split of {self.samples.task} has {what} in validation and in test; scores "
                "chosen on test samples would measure nothing, make a new split"
            )
        for role in ROLES:
            if not getattr(self, role):
                raise UserError(
                    f"the split of {self.samples.task} has no {role} samples; use more samples"
                )

    @classmethod
    def make(
        cls,
        samples: SampleSet,
        built: Sequence[Sample],
        share: float = VALIDATION_SHARE,
        seed: int = 42,
    ) -> Split:
        """Draw ``share`` of the samples for validation; equal samples stay together.

        Raises:
            UserError: a share outside of (0, 1), or too few samples for two parts.
        """
        if not 0 < share < 1:
            raise UserError(f"a validation share of {share} leaves one part empty; e.g. 0.15")
        by_hash: dict[str, list[int]] = {}
        for position, sample in enumerate(built):
            by_hash.setdefault(sample_hash(sample), []).append(position)
        order = list(by_hash)
        Random(f"cokv-split:{seed}:{samples.task}").shuffle(order)
        wanted = max(1, round(share * len(built)))
        chosen: dict[int, str] = {}
        for digest in order:
            if len(chosen) < wanted:
                chosen.update(dict.fromkeys(by_hash[digest], digest))
        rest = {
            position: digest
            for digest, positions in by_hash.items()
            for position in positions
            if position not in chosen
        }
        return cls(samples, seed, dict(sorted(chosen.items())), dict(sorted(rest.items())))

    def build(self, role: str, tokenizer: Any) -> list[Sample]:
        """The samples of one part.

        Raises:
            UserError: samples that are no longer what they were when the split was made.
        """
        if role not in ROLES:
            raise UserError(f"unknown part {role!r} of a split; use {' or '.join(ROLES)}")
        wanted: dict[int, str] = getattr(self, role)
        built = self.samples.build(tokenizer)
        for position, digest in wanted.items():
            if position >= len(built) or sample_hash(built[position]) != digest:
                raise UserError(
                    f"sample {position} of {self.samples.task} is not the one that the split was "
                    "made of (other data, tokenizer or version); make a new split"
                )
        return [built[position] for position in wanted]


def write_splits(path: str | Path, splits: Iterable[Split]) -> Path:
    """Write splits of several tasks to one JSON file, whole or not at all."""
    content = {split.samples.task: asdict(split) for split in splits}
    return write_json(path, {"format": 1, "splits": content}, indent=1)


def read_splits(path: str | Path) -> dict[str, Split]:
    """The splits of a file by task.

    Raises:
        UserError: unreadable, or parts that overlap.
    """
    try:
        content = read_object(path)
    except UserError as error:
        raise UserError(f"cannot read the split: {error}") from error
    try:
        return {
            task: Split(
                SampleSet(**entry["samples"]),
                entry["seed"],
                {int(position): digest for position, digest in entry["validation"].items()},
                {int(position): digest for position, digest in entry["test"].items()},
            )
            for task, entry in content["splits"].items()
        }
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"cannot read the split {path} ({type(error).__name__}: {error}); make it with "
            "experiments/cokv/split.py"
        ) from error


def find_split(path: str | Path, task: str) -> Split:
    """The split of one task; ``UserError`` lists the tasks of the file."""
    splits = read_splits(path)
    if task not in splits:
        raise UserError(
            f"{path} has no split of {task}; it has {', '.join(splits) or 'none'}; add it with "
            "experiments/cokv/split.py"
        )
    return splits[task]


def refuse_overlap(validation: Iterable[str], test: Sequence[Sample]) -> None:
    """Raise ``UserError`` if samples to test on were among those that scores were made on.

    Args:
        validation: hashes in the recipe of a score file.
        test: samples that are to be measured.
    """
    seen = set(validation)
    found = [sample.index for sample in test if sample_hash(sample) in seen]
    if found:
        raise UserError(
            f"{len(found)} samples to test on (the first has index {found[0]}) were among those "
            "that the scores were made on; test on others, for example with --split FILE"
        )
