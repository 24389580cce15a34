"""The command ``catekv doctor``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from catekv.commands.schema import Group
from catekv.evaluation.options import option


@dataclass(frozen=True)
class Examined:
    """What is looked at beside the installation."""

    model: str | None = option(
        None,
        "local folder, .gguf file or hub name: can it be compressed here?",
        metavar="MODEL",
    )
    mask: str | None = option(
        None, "head mask, folder or file: does it fit the model?", metavar="SOURCE"
    )
    json: bool = option(False, "print JSON")


OPTIONS = (Group(Examined),)


def run(arguments: argparse.Namespace) -> int:
    """The command; returns the exit code."""
    from catekv.commands import doctor_report

    return doctor_report.run(arguments.model, arguments.mask, as_json=arguments.json)
