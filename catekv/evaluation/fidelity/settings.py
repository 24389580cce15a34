"""What a fidelity run measures, and its columns: every method at every share of the memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from catekv.errors import UserError
from catekv.evaluation.columns.settings import MethodSpec, refuse_label_twice, stable_hash
from catekv.evaluation.options import refuse_source_twice, refuse_twice
from catekv.methods import Method, ModelShape
from catekv.methods.registry import method_class
from catekv.methods.stores import QUANTISED

FULL = "full"
#: the source that needs no file: prose of the built-in generators
PROSE = "prose"
#: what leaves a kind of passage out
NONE = "none"
DEFAULT_TASKS = ("ruler/niah_multikey_1", "ruler/vt")
QUESTIONS = ("agnostic", "aware")


@dataclass(frozen=True)
class Column:
    """A method, and the share of a context's entries that it keeps; None: as its options say."""

    spec: MethodSpec
    ratio: float | None = None

    def for_prompt(self, tokens: int, shape: ModelShape) -> Method:
        """The method for a context of ``tokens`` tokens; ``UserError`` if it cannot keep so few."""
        if self.ratio is None:
            return self.spec.for_prompt(tokens, shape)
        return replace(self.spec.create(), keep=self.ratio).for_prompt(tokens, shape)

    @property
    def label(self) -> str:
        return self.spec.label

    @property
    def title(self) -> str:
        return self.label if self.ratio is None else f"{self.label} at {100 * self.ratio:g} %"

    @property
    def key(self) -> str:
        """Which measurements are of this column, whatever it is called."""
        return stable_hash([self.spec.to_dict(), self.ratio])


def columns_of(specs: Iterable[MethodSpec], ratios: Sequence[float]) -> list[Column]:
    """Every method but the full cache at every ratio; without ratios as its options say. A full
    cache in fewer bits is compared, too, and has no ratios.

    Raises:
        UserError: a ratio beside a size that a method was given, which it would not keep to.
    """
    refuse_twice("--ratios", [f"{ratio:g}" for ratio in ratios])
    found = []
    for spec in specs:
        if spec.name != FULL:
            sizes = {"keep", *method_class(spec.name).size_options}.intersection(spec.options)
            if ratios and sizes:
                raise UserError(
                    f"{min(sizes)} of {spec.label} and --ratios both say how much is kept; give "
                    "one of them"
                )
            found += [Column(spec, ratio) for ratio in (ratios or (None,))]
        elif spec.options.get("store") in QUANTISED:
            found.append(Column(spec, None))
    return found


@dataclass(frozen=True)
class Settings:
    """Everything that decides the numbers of a run.

    Attributes:
        model_hash: identity of the weights. dtype, device, attention: as loaded.
        texts: files, or ``prose``. tasks: whose prompts the full model answers.
        lengths: tokens of context and continuation (of a task: of prompt and answer).
        samples: passages per text, and per task, at every length.
        forced: tokens of the continuation, and most of an answer.
        question: ``agnostic`` or ``aware``.
        batch_size: passages read at once.
    """

    model: str
    model_hash: str
    dtype: str
    device: str
    attention: str
    texts: tuple[str, ...]
    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    columns: tuple[Column, ...]
    samples: int = 4
    forced: int = 64
    question: str = "agnostic"
    chat_template: str = "auto"
    seed: int = 42
    batch_size: int = 1
    chunk_size: int = 8192

    def __post_init__(self) -> None:
        counts = {
            "samples": self.samples, "forced": self.forced, "batch-size": self.batch_size,
            "chunk-size": self.chunk_size,
        }  # fmt: skip
        for name, count in counts.items():
            if count < 1:
                raise UserError(f"--{name} {count} must be at least 1")
        for length in self.lengths:
            if length <= self.forced:
                raise UserError(
                    f"a length of {length} tokens leaves no context before {self.forced} forced "
                    "ones; give a larger --lengths or a smaller --forced"
                )
        for column in self.columns:
            if column.ratio is not None and not 0 < column.ratio <= 1:
                raise UserError(
                    f"--ratios {column.ratio:g} is no share of the memory; give numbers above 0, "
                    "at most 1"
                )
        if not self.texts and not self.tasks:
            raise UserError("there is nothing to measure on; give --text or --tasks")
        refuse_source_twice("--text", self.texts)
        refuse_twice("--tasks", self.tasks)
        refuse_twice("--lengths", self.lengths)
        refuse_label_twice(column.title for column in self.columns)
        if not self.columns:
            raise UserError("there is nothing to compare with the full cache; give --methods")
        if self.question not in QUESTIONS:
            raise UserError(f"unknown question mode {self.question!r}; use {', '.join(QUESTIONS)}")

    def configuration(self) -> dict[str, Any]:
        """What all records of a folder share; passages and columns may be added to it."""
        return {
            "model_hash": self.model_hash,
            "dtype": self.dtype,
            "device": self.device,
            "attention": self.attention,
            "forced": self.forced,
            "question": self.question,
            "chat_template": self.chat_template,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "chunk_size": self.chunk_size,
        }
