"""The suite's results as one JSON and one Markdown file, rewritten after every stage."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.records import ERROR, NOT_RUN, OK, WRONG, Outcome, Records
from catekv.evaluation import tables
from catekv.files import write_atomically

MANIFEST, SUITE_JSON, SUITE_MARKDOWN = "manifest.json", "suite.json", "suite.md"


def table(outcomes: Sequence[Outcome], *, markdown: bool) -> str:
    """All rows of a stage; columns in the order in which they first appear."""
    rows = [row for outcome in outcomes for row in outcome.rows]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    make = tables.markdown_table if markdown else tables.plain_table
    return make(columns, [[row.get(name, "-") for name in columns] for row in rows])


def stage_text(title: str, outcomes: Sequence[Outcome], *, markdown: bool) -> str:
    """A stage's table, its goals, and what went wrong or was not run."""
    parts = [f"## {title}" if markdown else title]
    if any(outcome.rows for outcome in outcomes):
        parts.append(table(outcomes, markdown=markdown))
    lines = [goal.describe() for outcome in outcomes for goal in outcome.goals]
    lines += [
        f"{outcome.case}: {outcome.status}{', ' if outcome.note else ''}{outcome.note}"
        for outcome in outcomes
        if outcome.status != OK or outcome.note
    ]
    if lines:
        parts.append("\n".join(f"- {line}" for line in lines))
    if not outcomes:
        parts.append("not run")
    return "\n\n".join(parts)


def write(folder: Path, manifest: dict[str, Any], titles: dict[str, str]) -> None:
    """Write the manifest and both files from the records in ``folder``."""
    records = Records(folder)
    stages = {name: records.outcomes(name) for name in titles}
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    content = {
        "manifest": manifest,
        "stages": {
            name: [
                {
                    **dataclasses.asdict(outcome),
                    "goals": [
                        {**dataclasses.asdict(goal), "met": goal.met} for goal in outcome.goals
                    ],
                }
                for outcome in outcomes
            ]
            for name, outcomes in stages.items()
        },
    }
    write_atomically(folder / SUITE_JSON, json.dumps(content, indent=1) + "\n")
    parts = [_head(manifest), _summary(stages)]
    parts += [
        stage_text(titles[name], outcomes, markdown=True) for name, outcomes in stages.items()
    ]
    write_atomically(folder / SUITE_MARKDOWN, "\n\n".join(part.strip() for part in parts) + "\n")


def _head(manifest: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in manifest["versions"].items())
    device = manifest["device"]
    return (
        f"# GPU suite\n\n`{manifest['command']}` on {device.get('name', '?')}, commit "
        f"{manifest['git_commit'] or 'unknown'}.\n\n{versions}.\n\n{manifest['remark']}"
    )


def _summary(stages: dict[str, list[Outcome]]) -> str:
    rows = []
    for name, outcomes in stages.items():
        goals = [goal for outcome in outcomes for goal in outcome.goals]
        count = dict.fromkeys((OK, WRONG, ERROR, NOT_RUN), 0)
        for outcome in outcomes:
            count[outcome.status] += 1
        rows.append(
            [
                name,
                *(str(count[status]) for status in (OK, WRONG, ERROR, NOT_RUN)),
                f"{sum(goal.met for goal in goals)} of {len(goals)}" if goals else "-",
                f"{sum(outcome.seconds for outcome in outcomes):.0f}",
            ]
        )
    header = ["stage", "ok", "wrong", "errors", "not run", "goals met", "seconds"]
    return tables.markdown_table(header, rows)
