"""The command ``catekv tasks``."""

from __future__ import annotations

import argparse
from pathlib import Path

from catekv.commands.arguments import add_plugin_argument
from catekv.commands.numbers import whole
from catekv.errors import UserError
from catekv.options import MOST_SAMPLES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``catekv tasks``."""
    parser.add_argument("name", nargs="?", help="explain this task and its options")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_plugin_argument(parser)
    parser.add_argument("--build", nargs="+", default=[], metavar="TASK", help="tasks to build")
    parser.add_argument(
        "--model", help="model whose tokenizer counts the tokens (default: the embedded model)"
    )
    parser.add_argument("--length", type=int, default=4096, help="tokens (default: 4096)")
    parser.add_argument(
        "--samples", type=whole(1, MOST_SAMPLES), default=10, help="samples per task (default: 10)"
    )
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("data/ruler/data"),
        help="root of MODEL/LENGTH/TASK/validation.jsonl (default: data/ruler/data)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files made differently")


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

    if min(arguments.length, arguments.samples) < 1:
        raise UserError("--length and --samples must be at least 1")
    request = Request(model=arguments.model)
    paths = prepare(
        load_tokenizer(model_path(request)),
        arguments.output,
        model_name(request),
        tasks=arguments.build,
        lengths=[arguments.length],
        num_samples=arguments.samples,
        seed=arguments.seed,
        overwrite=arguments.overwrite,
    )
    print("\n".join(str(path) for path in paths))
    return 0
