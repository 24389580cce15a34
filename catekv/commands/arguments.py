"""Options that several commands share; loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catekv.commands.schema import Group
from catekv.evaluation.options import COUNT, MOST_SAMPLES, REQUIRED, option, refuse_source_twice
from catekv.evaluation.run import request
from catekv.evaluation.run.request import Request

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


@dataclass(frozen=True)
class Texts:
    """Pieces of text that a model reads."""

    text: tuple[str, ...] = option(
        REQUIRED, "text files, or prose (generated)", metavar="FILE", verbatim=True
    )
    length: int = option(1024, "tokens of a piece (default: {default})", **COUNT)
    samples: int = option(
        64, "pieces of each text at most (default: {default})", least=1, most=MOST_SAMPLES
    )

    def pieces(self, tokenizer: Any, seed: int) -> list[list[int]]:
        """Token ids of all pieces; ``UserError`` for a text that is too short or given twice."""
        from catekv.evaluation.fidelity.passages import pieces_of

        refuse_source_twice("--text", self.text)
        return [
            piece
            for source in self.text
            for piece in pieces_of(source, self.length, self.samples, seed, tokenizer)
        ]


PROGRESS = Group(Progress)
TEXTS = Group(Texts)
#: Methods and benchmarks of a user's own; the command line loads them before a command runs.
PLUGINS = Group(Request, ("plugins",))
LISTING = Group(Listing)
