"""The loop of a run: unit after unit, with what fails tried again in smaller parts."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import traceback
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from catekv.errors import UserError
from catekv.evaluation.columns.settings import MethodSpec, RunSettings
from catekv.evaluation.records.records import SKIPPED, Key, Record, RunDirectory
from catekv.evaluation.run import sanity
from catekv.evaluation.run.batches import Unit, alike, units_of
from catekv.evaluation.run.cells import Cell, sample_hash
from catekv.evaluation.run.distributed import Process
from catekv.evaluation.run.measuring import Measurer, Phase
from catekv.evaluation.run.progress import NONE, Progress
from catekv.prefill.capacity import ran_out_of_memory

if TYPE_CHECKING:
    from catekv.model import CateKVModel

#: What makes a run shorter.
_SHORTER = "fewer --samples, --methods or --tasks, smaller --lengths; or --joint-decode"
#: Measurements of a process before the share of failed ones means anything.
_ENOUGH = 20


@dataclasses.dataclass
class _Attempt:
    """How a unit is being measured: ``missing`` methods under a prefill ``mode``, decoded at once
    where ``joint``; ``failed`` ones are given up; ``fitted`` samples at once had memory (0: it did
    not lack)."""

    unit: Unit
    missing: list[MethodSpec]
    mode: str
    joint: bool
    failed: list[MethodSpec] = dataclasses.field(default_factory=list)
    fitted: int = 0


@dataclasses.dataclass(frozen=True)
class _Failure:
    """What went wrong with ``spec`` in ``phase``, and whether memory was lacking."""

    spec: MethodSpec
    phase: str
    error: dict[str, str]
    memory: bool


def _work(unit: Unit) -> int:
    """What a unit costs beside others: its tokens, where they are known."""
    return len(unit.positions) * (unit.cell.length or 1)


class Loop:
    """What one process measures; it counts what it did.

    Attributes:
        failed, measured, skipped: records of this run.
    """

    def __init__(
        self,
        model: CateKVModel,
        settings: RunSettings,
        directory: RunDirectory,
        process: Process,
        max_errors: float,
    ) -> None:
        self.model = model
        self.settings = settings
        self.directory = directory
        self.process = process
        self.max_errors = max_errors
        self.measurer = Measurer(model, settings, process)
        self.failed = self.measured = self.skipped = 0
        self.done: Mapping[Key, Record] = process.alike(directory.records())
        self.progress = Progress(0, NONE)
        self._read: tuple[Any, ...] = ()

    @property
    def hopeless(self) -> bool:
        """Whether so much failed that the rest is not worth trying."""
        return self.measured >= _ENOUGH and self.failed > self.max_errors * self.measured

    def run(self, cells: Sequence[Cell], shown: str, foretell: bool = True) -> None:
        for cell in cells:
            self._check_unchanged(cell)
        plan = [
            (cell, units_of(cell, question, self.settings.batch_size, self.process), question)
            for cell in cells
            for question in self.settings.questions
        ]
        every = [unit for _, units, _ in plan for unit in units]
        total = sum(len(unit.positions) for unit in every)
        work = sum(_work(unit) for unit in every)
        shorter = _SHORTER if foretell else ""
        with Progress(total, shown, work=work, shorter=shorter) as self.progress:
            for cell, units, question in plan:
                self._skip(cell, question)
                most = self.settings.batch_size
                for unit in units:
                    most = self._unit(unit, most)
                    if self.hopeless:
                        return

    def _check_unchanged(self, cell: Cell) -> None:
        """Refuse to add to records of other samples, e.g. built by another version.

        Compares all samples that are at hand; of those that are built when they are needed, the
        first.
        """
        known = range(cell.count if cell.sizes is not None else 1)
        hashes = functools.cache(lambda position: sample_hash(cell.sample(position)))
        for key, record in self.done.items():
            if (
                key[:2] == (cell.task, cell.length)
                and key[2] in known
                and record.error is None
                and record.sample_hash != hashes(key[2])
            ):
                raise UserError(
                    f"{self.directory.path} holds other samples of {cell.task} (built by another "
                    "version or from another file); use --overwrite or another folder"
                )

    def _skip(self, cell: Cell, question: str) -> None:
        """Records of samples that are left out; they say why."""
        number, shards = self.process.shard
        reasons = cell.left_out(question)
        positions = sorted(reasons)[number::shards]
        unit = Unit(cell, question, tuple(positions))
        for position in positions:
            error = {"type": SKIPPED, "message": reasons[position], "phase": "prompt"}
            for spec in self.settings.methods:
                blank = self.measurer.blank(unit, position, spec)
                if blank.key not in self.done:
                    self._keep(dataclasses.replace(blank, error=error))

    def _unit(self, unit: Unit, most: int) -> int:
        """Measure what a unit lacks, at most ``most`` samples at once; returns how many of them
        the next unit may try: fewer where memory was lacking."""
        before = self.measured
        missing = [spec for spec in self.settings.methods if self._lacks(unit, spec)]
        for part in _parts(unit) if missing else ():
            for piece in part.limited(most):
                most = min(most, self._measure(piece, list(missing), self.settings.prefill) or most)
        if self.settings.sanity:
            self._check_validity(unit)
        count = len(unit.positions)
        measured = count if self.measured > before else 0
        self.progress.advance(unit.cell.task, count, measured, _work(unit))
        return most

    def _lacks(self, unit: Unit, spec: MethodSpec) -> bool:
        """Whether a sample has no good record under a method; failed ones are tried again."""
        lacks = False
        for position in unit.positions:
            record = self.done.get(self.measurer.blank(unit, position, spec).key)
            if record is None or record.error is not None:
                lacks = True
            else:
                self.progress.score(spec.label, record.official or 0.0)
        return lacks

    def _measure(self, unit: Unit, missing: list[MethodSpec], mode: str) -> int:
        """Measure a unit with the methods that lack it.

        A batch is measured as a whole, also where an interruption left only some of its records
        missing: its rounding must not depend on that. What fails is tried again by the first of the
        steps below that applies; each makes the attempt smaller, and the last ends it with an error
        record.

        Returns:
            How many samples at once there was memory for; 0: it did not lack.
        """
        steps = (self._read_apart, self._decode_apart, self._halve, self._give_up)
        attempt = _Attempt(unit, missing, mode, self.settings.joint_decode)
        while attempt.missing:
            failure = self._try(attempt)
            if failure is None:
                break
            if failure.memory:
                _free()
            any(step(attempt, failure) for step in steps)
        return attempt.fitted

    def _try(self, attempt: _Attempt) -> _Failure | None:
        """Measure and keep what works; the first failure ends it."""
        phase = Phase(attempt.missing[0])
        # a joint batch always holds all methods, also those measured before an interruption
        batch = [s for s in self.settings.methods if s not in attempt.failed]
        results = self.measurer.records(
            attempt.unit, attempt.missing, batch if attempt.joint else [], attempt.mode, phase
        )
        with contextlib.closing(results):
            while attempt.missing:
                try:
                    records = next(results)
                except Exception as error:
                    self.process.must_end(error, phase.name)
                    described = _describe(error, phase.name)
                    return _Failure(phase.spec, phase.name, described, ran_out_of_memory(error))
                for record in records:
                    self._keep(record)
                attempt.missing = attempt.missing[1:]
        return None

    def _read_apart(self, attempt: _Attempt, failure: _Failure) -> bool:
        """A single context that lacks memory: the prefill that needs least of it."""
        unit = attempt.unit
        single = len(unit.positions) == 1 or unit.one_context
        if not (failure.memory and attempt.mode != "separate" and single):
            return False
        attempt.mode, attempt.joint = "separate", False
        return True

    def _decode_apart(self, attempt: _Attempt, failure: _Failure) -> bool:
        """A joint decode that fails: method by method."""
        if not (attempt.joint and failure.phase == "generate"):
            return False
        attempt.joint = False
        return True

    def _halve(self, attempt: _Attempt, failure: _Failure) -> bool:
        """A batch: its halves, for all missing methods if memory was lacking, else for the one that
        failed while the others go on as a batch."""
        unit, count = attempt.unit, len(attempt.unit.positions)
        if count == 1:
            return False
        again = attempt.missing if failure.memory else [failure.spec]
        for half in unit.halves():
            fewer = self._measure(half, list(again), attempt.mode)
            if failure.memory and not unit.one_context:
                attempt.fitted = min(attempt.fitted or count, fewer or len(half.positions))
        attempt.missing = [s for s in attempt.missing if all(s is not tried for tried in again)]
        return True

    def _give_up(self, attempt: _Attempt, failure: _Failure) -> bool:
        """A single sample under one method: an error record."""
        attempt.failed.append(failure.spec)
        if failure.spec in attempt.missing:
            blank = self.measurer.blank(attempt.unit, attempt.unit.positions[0], failure.spec)
            self._keep(dataclasses.replace(blank, error=failure.error))
            attempt.missing = [spec for spec in attempt.missing if spec is not failure.spec]
        return True

    def _check_validity(self, unit: Unit) -> None:
        """The columns that test the task."""
        for position in unit.positions:
            for blank in sanity.blanks(unit, position, self.settings):
                record = self.done.get(blank.key)
                if record is not None and (record.error is None or record.skipped):
                    self.progress.score(blank.method, record.official or 0.0)
                    continue
                try:
                    record = sanity.measure(blank, unit, self.model, self.settings)
                except Exception as error:
                    runs = blank.method == sanity.NO_CONTEXT
                    self.process.must_end(error, "generate" if runs else "score")
                    record = dataclasses.replace(blank, error=_describe(error, "sanity"))
                self._keep(record)

    def _keep(self, record: Record) -> None:
        """Write a record, unless an earlier run has a good one."""
        earlier = self.done.get(record.key)
        if earlier is not None and earlier.error is None:
            return
        if self.process.writes:
            self.directory.append(record)
        if record.skipped:
            self.skipped += 1
            return
        self.measured += 1
        if record.error is not None:
            self.failed += 1
            return
        self._count_tokens(record)
        self.progress.score(record.method, record.official or 0.0)

    def _count_tokens(self, record: Record) -> None:
        place = (record.task, record.length, record.index, record.question)
        if record.prefill != "shared" or place != self._read:
            self.progress.tokens += record.prompt_tokens
        self._read = place
        self.progress.tokens += record.new_tokens


def _parts(unit: Unit) -> list[Unit]:
    """What of a unit may be measured at once. Where a sample cannot be built, none of them: it then
    fails alone and gets its record."""
    try:
        return alike(unit)
    except Exception:
        return unit.limited(1)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _describe(error: Exception, phase: str) -> dict[str, str]:
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return {
        "type": type(error).__name__,
        "message": str(error),
        "phase": phase,
        "traceback": trace,
    }
