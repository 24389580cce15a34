"""The command ``catekv evaluate``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from catekv.commands.arguments import PROGRESS
from catekv.commands.schema import Group
from catekv.evaluation.options import option
from catekv.evaluation.run.request import Request

if TYPE_CHECKING:
    from catekv.model import CateKVModel


@dataclass(frozen=True)
class Masks:
    """What happens where a method needs a head mask and the model has none."""

    make_masks: bool = option(
        False,
        "where a method needs head masks and the model has none, make them first as `catekv "
        "calibrate --quick` does; not with --paper or several processes",
    )


REQUEST = Group(Request)
MASKS = Group(Masks)
OPTIONS = (REQUEST, MASKS, PROGRESS)


def run(arguments: argparse.Namespace) -> int:
    """The command; returns the exit code: 1 if a sample failed."""
    from catekv.evaluation.run.session import run as measure

    request = REQUEST.read(arguments)

    def make_masks(model: CateKVModel) -> None:
        from catekv.commands.calibrate import make_quick

        print(f"{request.model} has no head masks yet: making some first", file=sys.stderr)
        make_quick(model, request, arguments.quiet)

    return measure(
        request,
        command=arguments.command_line,
        quiet=arguments.quiet,
        make_masks=make_masks if MASKS.read(arguments).make_masks else None,
    )
