"""Options that several commands share; loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from catekv.commands.schema import Group
from catekv.evaluation.run import request
from catekv.evaluation.run.request import Request
from catekv.options import option

#: Which model runs, and how.
MODEL = Group(Request, request.MODEL)


@dataclass(frozen=True)
class Progress:
    """How a command says how far it is."""

    quiet: bool = option(False, "for a log: no progress bar, plain lines at most")


@dataclass(frozen=True)
class Listing:
    """What is listed, and how."""

    name: str | None = option(None, "explain this one and its options", positional=True)
    json: bool = option(False, "print JSON")


PROGRESS = Group(Progress)
LISTING = Group(Listing)
