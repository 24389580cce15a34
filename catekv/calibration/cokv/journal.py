"""State of a score run on disk: a journal with one line per validation sample and block.

A folder holds ``recipe.json`` and one ``draws-IofN.jsonl`` per process. A line has the scores of
one sample for the coalitions that a block needed anew; which those are follows from the recipe, so
the sums, the utilities known so far and the course of the error are rebuilt by reading the lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from catekv.calibration.cokv.drawing import Draw, draws_of_block
from catekv.calibration.cokv.game import Members
from catekv.errors import UserError
from catekv.evaluation.records.journal import Form, Journal
from catekv.evaluation.records.recipe import refuse_other
from catekv.files import check_folder, read_object, refuse_foreign, write_atomically

RECIPE_FILE = "recipe.json"
#: What is made from the draws of a folder, and outdated without them.
SCORE_FILE, COURSE_FILE, ALPHA_FILE = RESULT_FILES = ("scores.npz", "mae.csv", "alpha.json")
_DRAWS = re.compile(r"draws-\d+of\d+\.jsonl")
#: The block of the full and the empty coalition, which the first process looks at.
BOUNDS = -1


@dataclass(frozen=True)
class Plan:
    """What decides which coalitions are looked at.

    Attributes:
        players: of the game. slices: coalition sizes, ascending. seed: of the draws.
        per_block: draws of every slice and run between two checks.
        samples: number of validation samples.
        processes: over how many processes a block is dealt out.
    """

    players: int
    slices: tuple[int, ...]
    seed: int
    per_block: int
    samples: int
    processes: int = 1

    def coalitions(self, block: int, part: int) -> list[Members]:
        """The coalitions of one block of one process, without repetitions."""
        if block == BOUNDS:
            everyone = np.ones(self.players, dtype=np.bool_)
            return [everyone, ~everyone] if part == 0 else []
        found: dict[bytes, Members] = {}
        for draw in self.draws(block, part):
            members = draw.members(self.seed, self.players)
            for one in (members, ~members):
                found.setdefault(one.tobytes(), one)
        return list(found.values())

    def draws(self, block: int, part: int) -> list[Draw]:
        return draws_of_block(block, self.per_block, self.slices, part, self.processes)


@dataclass
class Shard:
    """What one process has found so far: utilities by coalition, and scores of the open block."""

    plan: Plan
    part: int
    known: dict[bytes, float] = field(default_factory=dict)
    block: int = BOUNDS
    pending: dict[int, list[float]] = field(default_factory=dict)
    _wanted: list[Members] | None = None

    def wanted(self) -> list[Members]:
        """Coalitions of the open block whose utility is not known yet."""
        if self._wanted is None:
            found = self.plan.coalitions(self.block, self.part)
            self._wanted = [one for one in found if one.tobytes() not in self.known]
        return self._wanted

    def missing_samples(self) -> list[int]:
        """Samples that the open block still has to be measured on; none if nothing is new in it."""
        if not self.wanted():
            return []
        return [sample for sample in range(self.plan.samples) if sample not in self.pending]

    def add(self, sample: int, values: Sequence[float]) -> None:
        """Take over the scores of one sample for :meth:`wanted`.

        Raises:
            UserError: another number of scores than coalitions.
        """
        if len(values) != len(self.wanted()):
            raise UserError(
                f"block {self.block}: {len(values)} scores for {len(self.wanted())} coalitions; "
                "the journal belongs to another recipe, use --overwrite"
            )
        self.pending[sample] = list(values)

    def close_if_complete(self) -> bool:
        """Go on to the next block if the open one is measured on all samples."""
        if self.missing_samples():
            return False
        wanted = self.wanted()
        if wanted:
            table = np.array([self.pending[sample] for sample in range(self.plan.samples)])
            for one, utility in zip(wanted, table.mean(axis=0), strict=True):
                self.known[one.tobytes()] = float(utility)
        self.pending, self._wanted = {}, None
        self.block += 1
        return True

    def read(self, line: Line) -> None:
        """Take over one line of a journal; what is known already is passed over."""
        while self.block < line.block and self.close_if_complete():
            pass
        if line.block == self.block and line.sample not in self.pending:
            self.add(line.sample, line.scores)


@dataclass(frozen=True)
class Line:
    """The scores of one sample for the coalitions that a block needed anew."""

    block: int
    sample: int
    scores: list[float]

    @classmethod
    def of(cls, content: dict[str, Any]) -> Line:
        line = cls(**content)
        whole = type(line.block) is type(line.sample) is int
        if not whole or not all(isinstance(score, int | float) for score in line.scores):
            raise TypeError("a block and a sample are whole numbers, scores are numbers")
        return line


_FORM: Form[Line] = Form(
    "block, sample and scores",
    Line.of,
    asdict,
    lambda line: (line.block, line.sample),
    "use --overwrite",
)


class ScoreFolder:
    """The folder of a run, from one of its processes; as a context manager, its only writer."""

    def __init__(self, folder: str | Path, plan: Plan, part: int = 0):
        self.folder = Path(folder)
        self.plan = plan
        self.part = part
        self._shards = [Shard(plan, one) for one in range(plan.processes)]
        self._journals = [
            Journal(self.folder / f"draws-{one + 1}of{plan.processes}.jsonl", _FORM, lazily=True)
            for one in range(plan.processes)
        ]

    def prepare(self, recipe: dict[str, Any], *, overwrite: bool = False) -> None:
        """Make the folder, or check that what is in it was made the same way.

        Raises:
            UserError: a folder of another recipe, or one that cannot be written.
        """
        path = self.folder / RECIPE_FILE
        check_folder(self.folder)
        if overwrite:
            _delete_run(self.folder, recipe)
        if path.exists():
            held = read_object(path, "restore it or choose another --output")
            remedy = "use another --output, or --overwrite"
            refuse_other(self.folder, held, recipe, remedy, "draws")
            return
        own = (*RESULT_FILES, *(file.name for file in _draws_in(self.folder)))
        refuse_foreign(self.folder, own, RECIPE_FILE)
        write_atomically(path, json.dumps(recipe, indent=1, sort_keys=True) + "\n")

    def __enter__(self) -> ScoreFolder:
        self._journals[self.part].__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._journals[self.part].__exit__(kind, error, trace)

    def append(self, block: int, sample: int, values: Sequence[float]) -> None:
        """Write the scores of one sample for the new coalitions of a block."""
        self._journals[self.part].append(Line(block, sample, list(values)))

    def shards(self) -> list[Shard]:
        """What every process has found so far, this one's own part among them."""
        return [self._read(part) for part in range(self.plan.processes)]

    def own(self) -> Shard:
        return self._read(self.part)

    def _read(self, part: int) -> Shard:
        """One process's shard, brought up to date with the lines written since the last call."""
        shard = self._shards[part]
        for line in self._journals[part].new_rows():
            shard.read(line)
        if shard.pending:
            shard.close_if_complete()
        return shard


def _draws_in(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if _DRAWS.fullmatch(file.name)]


def _delete_run(folder: Path, recipe: dict[str, Any]) -> None:
    """Remove what runs wrote into a folder, if the recipe in it is one of theirs."""
    path = folder / RECIPE_FILE
    if not path.exists():
        return
    wanted = recipe.keys() & {"task", "processes", "slices", "seed"}
    if not read_object(path, "choose another --output").keys() >= wanted:
        raise UserError(f"{path} is no recipe of this command; choose another --output")
    results = [folder / name for name in RESULT_FILES]
    for old in (path, *results, *_draws_in(folder)):
        old.unlink(missing_ok=True)
