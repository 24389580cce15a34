"""What ``catekv tasks`` prints: every task with its score, allowance, data and options."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Sequence
from typing import Any

from catekv.evaluation import tables
from catekv.tasks.registry import available, family_of, find
from catekv.tasks.rows.sources import DataOptions


def describe_task(name: str) -> dict[str, Any]:
    """Name, family, score, allowance, data and options of one task as plain values.

    Raises:
        UserError: unknown name; the message lists those there are.
    """
    task = find(name)
    options = {
        item.name: getattr(task.options, item.name) for item in dataclasses.fields(task.options)
    }
    return {
        "name": task.name,
        "family": family_of(task).name,
        "score": task.metric,
        "max_new_tokens": task.max_new_tokens,
        "data": "rows" if task.natural else "generated",
        "summary": inspect.getdoc(type(task.options)) or "",
        "options": options,
    }


def list_tasks(names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """:func:`describe_task` of these tasks; of all without names."""
    return [describe_task(name) for name in names or available()]


def render_json(tasks: Sequence[dict[str, Any]]) -> str:
    """The descriptions as JSON."""
    return json.dumps(tasks, indent=2, default=str)


def render_table(tasks: Sequence[dict[str, Any]]) -> str:
    """One line per task."""
    rows = [
        [task["name"], task["score"], str(task["max_new_tokens"]), task["data"]] for task in tasks
    ]
    return (
        tables.plain_table(["task", "official score", "new tokens", "data"], rows)
        + "\n\n`catekv tasks NAME` explains a task's options. rows: from a file, the hub, or "
        "source=built-in;\ngenerated: made at the length asked for."
    )


def render_details(task: dict[str, Any]) -> str:
    """Everything about one task."""
    lines = [
        f"{task['name']}: official score {task['score']}, {task['max_new_tokens']} new tokens",
        "",
        task["summary"],
        "",
        "options (--task-option NAME=VALUE) and their defaults:",
    ]
    lines += [f"  {name} = {value}" for name, value in task["options"].items()]
    if isinstance(find(task["name"]).options, DataOptions):
        lines += [
            "",
            "The folder in the environment variable CATEKV_DATA is searched for its data.",
        ]
    return "\n".join(lines)
