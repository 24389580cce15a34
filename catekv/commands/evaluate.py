"""The command ``catekv evaluate``."""

from __future__ import annotations

import argparse

from catekv.commands import schema
from catekv.evaluation.run.request import Request


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``catekv evaluate``."""
    schema.add_arguments(parser, Request)
    parser.add_argument(
        "--quiet", action="store_true", help="progress as plain lines for a log, no bar"
    )


def run(arguments: argparse.Namespace) -> int:
    """The command; returns the exit code: 1 if a sample failed."""
    from catekv.evaluation.run.session import run as measure

    request = schema.read(Request, arguments)
    return measure(request, command=arguments.command_line, quiet=arguments.quiet)
