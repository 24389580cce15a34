"""The command ``catekv efficiency``."""

from __future__ import annotations

import argparse

from catekv.commands.schema import Group
from catekv.evaluation.efficiency.arguments import Measuring
from catekv.evaluation.run.request import METHODS, MODEL, Request

REQUEST = Group(Request, (*MODEL, *METHODS, "chunk_size"), defaults={"methods": ("catekv",)})
MEASURING = Group(Measuring)
OPTIONS = (REQUEST, MEASURING)


def run(arguments: argparse.Namespace) -> int:
    """The command; returns the exit code."""
    from catekv.commands import efficiency_run

    return efficiency_run.run(
        MEASURING.read(arguments), REQUEST.read(arguments), arguments.command_line
    )
