"""The one file of a run: goals on top, then the machine and every case, rewritten after each case.

Whatever ends a run, the file says what was finished, what was in progress and what is missing; and
a later run can go on from it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.cases import CASES, MET, MISSED, NOT_JUDGED, NOT_RUN, OK, WHOLE, Case, Goal, Result
from catekv.errors import UserError
from catekv.evaluation import tables
from catekv.files import write_atomically

FILE, TEXT = "suite.json", "suite.md"
ROOT = Path(__file__).resolve().parents[1]
#: What must be equal for an outcome to be taken over from another run.
_SAME = ("code", "device", "scale")


@dataclasses.dataclass
class Outcome(Result):
    """What became of one case; ``status`` is one of those in :mod:`bench.cases`."""

    case: str = ""
    status: str = OK
    seconds: float = 0.0


def code_digest() -> str:
    """Of the sources that results depend on, also where a checkout has no history."""
    found = hashlib.sha256()
    for folder in ("bench", "catekv", "test/gpu"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


class Results:
    """Outcomes of the chosen cases, on disk after every change."""

    def __init__(self, folder: Path, manifest: dict[str, Any], cases: Sequence[Case]):
        self.folder, self.manifest, self.cases = folder, manifest, tuple(cases)
        self.outcomes: dict[str, Outcome] = {}
        self.running = ""

    @classmethod
    def load(cls, path: Path) -> Results:
        """Those of an earlier run.

        Raises:
            UserError: no such file, or no results of this suite.
        """
        known = {case.key: case for case in CASES}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            cases = [known[key] for key in content["planned"] if key in known]
            found = cls(path.parent, content["manifest"], cases)
            found.running = content["running"]
            found.outcomes = {one["case"]: Outcome(**one) for one in content["cases"]}
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; give a {FILE}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} holds no results of this suite; give its {FILE}") from error
        return found

    def take_over(self, other: Results) -> str:
        """Keep what another run finished, and say what was kept or why nothing was."""
        for name in _SAME:
            ours, theirs = self.manifest.get(name), other.manifest.get(name)
            if ours != theirs:
                return f"nothing is taken over: {name} was {theirs} and is {ours}"
        kept = [one for one in other.outcomes.values() if one.status == OK]
        kept = [one for one in kept if one.case in {case.key for case in self.cases}]
        self.outcomes.update({one.case: one for one in kept})
        return f"{len(kept)} of {len(self.cases)} cases are taken over"

    def start(self, case: Case) -> None:
        self.running = case.key
        self.write()

    def add(self, outcome: Outcome) -> None:
        self.outcomes[outcome.case] = outcome
        self.running = ""
        self.write()

    def missing(self) -> list[Case]:
        return [case for case in self.cases if case.key not in self.outcomes]

    def bad(self) -> list[Outcome]:
        """What is wrong or failed; what was not run is neither."""
        return [one for one in self.outcomes.values() if one.status not in (OK, NOT_RUN)]

    def goals(self) -> list[dict[str, Any]]:
        """Every goal of the planned cases: met, missed, or why it was not judged."""
        if self.manifest.get("scale") == "tiny":
            said = "tiny shapes on a CPU say nothing"
            return [_judged(goal, None, said) for case in self.cases for goal in case.goals]
        found = []
        for case in self.cases:
            outcome = self.outcomes.get(case.key)
            for goal in case.goals:
                value = outcome.values.get(goal.name) if outcome else None
                reason = "" if value is not None else _reason(outcome, goal)
                found.append(_judged(goal, value, reason))
        seconds = self.seconds()
        reason = "" if seconds is not None else "not every case has run"
        return [*found, _judged(WHOLE, seconds, reason)]

    def line(self, case: Case) -> str:
        """A case's outcome and goals."""
        outcome = self.outcomes[case.key]
        names = {goal.name for goal in case.goals}
        goals = [goal["text"] for goal in self.goals() if goal["name"] in names]
        parts = [f"[{outcome.seconds:6.1f} s] {case.key}: {outcome.status}", outcome.note, *goals]
        return "; ".join(part for part in parts if part)

    def seconds(self) -> float | None:
        """Those of all cases of the suite, None while one is missing."""
        outcomes = [self.outcomes.get(case.key) for case in CASES]
        if any(one is None or one.status == NOT_RUN for one in outcomes):
            return None
        return sum(one.seconds for one in outcomes if one)

    def write(self) -> None:
        """Both files anew."""
        content = {
            "summary": self.summary(),
            "goals": self.goals(),
            "manifest": self.manifest,
            "planned": [case.key for case in self.cases],
            "running": self.running,
            "cases": [dataclasses.asdict(one) for one in self.outcomes.values()],
        }
        write_atomically(self.folder / FILE, json.dumps(content, indent=1) + "\n")
        write_atomically(self.folder / TEXT, self.text())

    def summary(self) -> str:
        states = [goal["state"] for goal in self.goals()]
        counts = ", ".join(f"{states.count(one)} {one}" for one in (MET, MISSED, NOT_JUDGED))
        done = sum(one.status != NOT_RUN for one in self.outcomes.values())
        return f"goals: {counts}; cases: {done} of {len(self.cases)}, {len(self.bad())} bad"

    def text(self) -> str:
        """Goals, then one table per stage."""
        device = self.manifest.get("device", {})
        versions = ", ".join(f"{k} {v}" for k, v in self.manifest.get("versions", {}).items())
        parts = [
            "# GPU suite",
            f"`{self.manifest.get('command')}` on {device.get('name', '?')}, commit "
            f"{self.manifest.get('git_commit') or 'unknown'}; {versions}.",
            self.summary() + ".",
            "\n".join(f"- {goal['text']}" for goal in self.goals()),
        ]
        for stage in dict.fromkeys(case.stage for case in self.cases):
            keys = [case.key for case in self.cases if case.stage == stage]
            parts += _stage_text(
                stage, [self.outcomes[key] for key in keys if key in self.outcomes]
            )
        return "\n\n".join(part for part in parts if part) + "\n"


def _reason(outcome: Outcome | None, goal: Goal) -> str:
    if outcome is None:
        return "has not run"
    given = outcome.reasons.get(goal.name) or outcome.note or "was not measured"
    return given if outcome.status == OK else f"{outcome.status}, {given}"


def _judged(goal: Goal, value: float | None, reason: str) -> dict[str, Any]:
    return {
        **dataclasses.asdict(goal),
        "value": value,
        "state": goal.judge(value),
        "reason": reason,
        "text": goal.describe(value, reason),
    }


def _stage_text(stage: str, outcomes: Iterable[Outcome]) -> list[str]:
    outcomes = list(outcomes)
    rows = [row for one in outcomes for row in one.rows]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    notes = [
        f"- {one.case}: {one.status}{', ' if one.note else ''}{one.note}"
        for one in outcomes
        if one.status != OK or one.note
    ]
    body = [[row.get(name, "-") for name in columns] for row in rows]
    return [
        f"## {stage}",
        tables.markdown_table(columns, body).strip() if rows else "",
        "\n".join(notes) or ("" if outcomes else "not run"),
    ]
