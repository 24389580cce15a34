"""State of a score run on disk: one line per validation sample and block, safe against kill -9.

A folder holds ``recipe.json`` and one ``draws-IofN.jsonl`` per process. A line has the scores of
one sample for the coalitions that a block needed anew; which those are follows from the recipe, so
the sums, the utilities known so far and the course of the error are rebuilt by reading the lines.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from catekv.calibration.cokv.drawing import Draw, draws_of_block
from catekv.calibration.cokv.game import Members
from catekv.errors import UserError
from catekv.files import read_json, refusal, write_atomically

RECIPE_FILE = "recipe.json"
#: What is made from the draws of a folder, and outdated without them.
SCORE_FILE, COURSE_FILE, ALPHA_FILE = RESULT_FILES = ("scores.npz", "mae.csv", "alpha.json")
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

    def read(self, line: dict[str, Any]) -> None:
        """Take over one line of a journal; what is known already is passed over."""
        while self.block < line["block"] and self.close_if_complete():
            pass
        if line["block"] == self.block and line["sample"] not in self.pending:
            self.add(line["sample"], line["scores"])


class Journal:
    """The folder of a run, from one of its processes."""

    def __init__(self, folder: str | Path, plan: Plan, part: int = 0):
        self.folder = Path(folder)
        self.plan = plan
        self.part = part
        self._shards: dict[int, tuple[Shard, int]] = {}

    def prepare(self, recipe: dict[str, Any], *, overwrite: bool = False) -> None:
        """Make the folder, or check that what is in it was made the same way.

        Raises:
            UserError: a folder of another recipe, or one that cannot be written.
        """
        path = self.folder / RECIPE_FILE
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if overwrite:
                made = [self.folder / name for name in RESULT_FILES]
                for old in (path, *made, *self.folder.glob("draws-*.jsonl")):
                    old.unlink(missing_ok=True)
            if path.exists():
                _refuse_other_recipe(path, recipe)
            else:
                write_atomically(path, json.dumps(recipe, indent=1, sort_keys=True) + "\n")
            _cut_torn_line(self._path(self.part))
        except OSError as error:
            raise UserError(f"cannot write to {self.folder}: {error}") from error

    def append(self, block: int, sample: int, values: Sequence[float]) -> None:
        """Write the scores of one sample for the new coalitions of a block."""
        line = json.dumps({"block": block, "sample": sample, "scores": list(values)})
        path = self._path(self.part)
        try:
            with path.open("a") as stream:
                stream.write(line + "\n")
        except OSError as error:
            raise refusal(f"cannot write {path}", error) from error

    def shards(self) -> list[Shard]:
        """What every process has found so far, this one's own part among them."""
        return [self._read(part) for part in range(self.plan.processes)]

    def own(self) -> Shard:
        return self._read(self.part)

    def _read(self, part: int) -> Shard:
        """One process's shard, brought up to date with the lines written since the last call."""
        shard, position = self._shards.get(part, (Shard(self.plan, part), 0))
        lines, position = _whole_lines(self._path(part), position)
        for line in lines:
            shard.read(line)
        if shard.pending:
            shard.close_if_complete()
        self._shards[part] = shard, position
        return shard

    def _path(self, part: int) -> Path:
        return self.folder / f"draws-{part + 1}of{self.plan.processes}.jsonl"


def _whole_lines(path: Path, position: int) -> tuple[list[dict[str, Any]], int]:
    """The lines behind a position in bytes, and where they end; what a killed process left torn at
    the end is not one."""
    if not path.exists():
        return [], position
    with path.open("rb") as stream:
        stream.seek(position)
        content = stream.read()
    content = content[: content.rfind(b"\n") + 1]
    try:
        lines = [json.loads(line) for line in content.splitlines()]
    except ValueError as error:
        raise UserError(
            f"{path} holds a line that is no JSON ({error}); use --overwrite"
        ) from error
    if not all(
        isinstance(line, dict) and {"block", "sample", "scores"} <= {*line} for line in lines
    ):
        raise UserError(
            f"{path} holds a line that says no block, sample and scores; use --overwrite"
        )
    return lines, position + len(content)


def _cut_torn_line(path: Path) -> None:
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as stream:
                stream.truncate(whole)


def _refuse_other_recipe(path: Path, recipe: dict[str, Any]) -> None:
    try:
        held = read_json(path)
    except ValueError as error:
        raise UserError(f"{path} is not readable ({error}); use --overwrite") from error
    wanted = json.loads(json.dumps(recipe))
    for name in sorted({*held, *wanted}):
        if held.get(name) != wanted.get(name):
            raise UserError(
                f"{path.parent} holds draws made with another {name} ({_short(held.get(name))}, "
                f"now {_short(wanted.get(name))}); use another --output, or --overwrite"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
