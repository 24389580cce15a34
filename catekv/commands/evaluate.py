"""The command ``catekv evaluate``."""

from __future__ import annotations

import argparse

from catekv.commands.arguments import PROGRESS
from catekv.commands.schema import Group
from catekv.evaluation.run.request import Request

REQUEST = Group(Request)
OPTIONS = (REQUEST, PROGRESS)


def run(arguments: argparse.Namespace) -> int:
    """The command; returns the exit code: 1 if a sample failed."""
    from catekv.evaluation.run.session import run as measure

    request = REQUEST.read(arguments)
    return measure(request, command=arguments.command_line, quiet=arguments.quiet)
