"""What the suite has measured: one JSON line per case, appended as soon as it is known.

Every line is an outcome, the announcement of a stage's cases, or the start of a case; so whatever
ends a run, it is known what was finished, what was in progress and what is missing.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = "cases.jsonl"
OK, WRONG, ERROR, NOT_RUN = "ok", "wrong", "error", "not run"


@dataclass(frozen=True)
class Goal:
    """A bound that a measured value is compared with; ``at_least`` or at most."""

    name: str
    value: float
    bound: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def describe(self) -> str:
        sign = ">=" if self.at_least else "<="
        return (
            f"{self.name}: {self.value:.4g} (goal {sign} {self.bound:g}) "
            f"{'met' if self.met else 'NOT MET'}"
        )


@dataclass
class Outcome:
    """What became of one case; ``rows`` are lines of the stage's table, column -> cell."""

    stage: str
    case: str
    status: str = OK
    rows: list[dict[str, str]] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    note: str = ""
    seconds: float = 0.0
    data: Any = None

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Outcome:
        goals = [Goal(**goal) for goal in content.pop("goals", [])]
        return cls(**content, goals=goals)


class Records:
    """The file of one run; every process that measures appends to it."""

    def __init__(self, folder: Path):
        self.path = folder / FILE

    def _append(self, content: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(content) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def announce(self, stage: str, cases: Iterable[str]) -> None:
        """The cases that a stage consists of, in order."""
        self._append({"kind": "stage", "stage": stage, "cases": list(cases)})

    def start(self, stage: str, case: str) -> None:
        self._append({"kind": "start", "stage": stage, "case": case})

    def add(self, outcome: Outcome) -> None:
        self._append({"kind": "outcome", **dataclasses.asdict(outcome)})

    def _lines(self, stage: str) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                content = json.loads(line)
            except ValueError:
                # a kill may tear the last line
                continue
            if content.get("stage") == stage:
                found.append(content)
        return found

    def outcomes(self, stage: str) -> list[Outcome]:
        """What is known of a stage's cases, in their order."""
        found: dict[str, Outcome] = {}
        for line in self._lines(stage):
            if line.pop("kind") == "outcome":
                outcome = Outcome.from_dict(line)
                found[outcome.case] = outcome
        return list(found.values())

    def missing(self, stage: str) -> list[str]:
        """Announced cases without an outcome."""
        names = [line["cases"] for line in self._lines(stage) if line["kind"] == "stage"]
        done = {outcome.case for outcome in self.outcomes(stage)}
        return [name for name in (names[-1] if names else []) if name not in done]

    def interrupted(self, stage: str) -> str | None:
        """The case that was started last and has no outcome."""
        starts = [line["case"] for line in self._lines(stage) if line["kind"] == "start"]
        missing = self.missing(stage)
        return starts[-1] if starts and starts[-1] in missing else None
