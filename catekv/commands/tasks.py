"""The command ``catekv tasks``."""

from __future__ import annotations

import argparse
import dataclasses

from catekv.commands.arguments import LISTING, PLUGINS, Building
from catekv.commands.schema import Group
from catekv.errors import UserError
from catekv.evaluation.options import refuse_unheeded

BUILDING = Group(Building)
OPTIONS = (LISTING, PLUGINS, BUILDING)


def run(arguments: argparse.Namespace) -> int:
    """The command; returns the exit code."""
    asked, listed = BUILDING.read(arguments), LISTING.read(arguments)
    if not asked.build:
        from catekv.commands import task_list

        made = [item.name for item in dataclasses.fields(asked)]
        refuse_unheeded(asked, made, "without --build no samples are built")
        described = task_list.list_tasks([listed.name] if listed.name else [])
        if listed.json:
            print(task_list.render_json(described))
        elif listed.name:
            print(task_list.render_details(described[0]))
        else:
            print(task_list.render_table(described))
        return 0
    refuse_unheeded(listed, ("json",), "--build prints the names of files")
    if listed.name is not None:
        raise UserError(f"--build names the tasks to build; leave out {listed.name}")
    from catekv.commands.ruler_files import load_tokenizer, prepare
    from catekv.evaluation.run.request import Request

    request = Request(model=asked.model)
    paths = prepare(
        load_tokenizer(request.model_path),
        asked.output,
        request.model_name,
        tasks=asked.build,
        lengths=[asked.length],
        num_samples=asked.samples,
        seed=asked.seed,
        overwrite=asked.overwrite,
    )
    print("\n".join(str(path) for path in paths))
    return 0
