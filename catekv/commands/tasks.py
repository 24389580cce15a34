"""The command ``catekv tasks``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from catekv.commands.arguments import LISTING
from catekv.commands.schema import Group
from catekv.options import COUNT, MOST_SAMPLES, option


@dataclass(frozen=True)
class Building:
    """Samples to build, and where to."""

    build: tuple[str, ...] = option((), "tasks to build", verbatim=True, metavar="TASK")
    model: str | None = option(
        None, "model whose tokenizer counts the tokens (default: the embedded model)"
    )
    length: int = option(4096, "tokens (default: {default})", **COUNT)
    samples: int = option(10, "samples per task (default: {default})", least=1, most=MOST_SAMPLES)
    seed: int = option(42, "of the samples (default: {default})")
    output: Path = option(
        Path("data/ruler/data"),
        "root of MODEL/LENGTH/TASK/validation.jsonl (default: {default})",
    )
    overwrite: bool = option(False, "replace files made differently")


BUILDING = Group(Building)
OPTIONS = (LISTING, BUILDING)


def run(arguments: argparse.Namespace) -> int:
    """The command; returns the exit code."""
    if not arguments.build:
        from catekv.commands import task_list

        described = task_list.list_tasks([arguments.name] if arguments.name else [])
        if arguments.json:
            print(task_list.render_json(described))
        elif arguments.name:
            print(task_list.render_details(described[0]))
        else:
            print(task_list.render_table(described))
        return 0
    from catekv.commands.ruler_files import load_tokenizer, prepare
    from catekv.evaluation.run.request import Request
    from catekv.evaluation.run.session import model_name, model_path

    asked = BUILDING.read(arguments)
    request = Request(model=asked.model)
    paths = prepare(
        load_tokenizer(model_path(request)),
        asked.output,
        model_name(request),
        tasks=asked.build,
        lengths=[asked.length],
        num_samples=asked.samples,
        seed=asked.seed,
        overwrite=asked.overwrite,
    )
    print("\n".join(str(path) for path in paths))
    return 0
