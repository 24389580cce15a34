"""``catekv``: thin commands over the functions of the package.

Exit codes: 0 done; 1 the run finished but samples failed; 2 wrong usage or input (one line on
stderr says what and what to do); 130 interrupted (records are kept).
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from catekv.commands.arguments import add_method_arguments as add_method_arguments
from catekv.commands.arguments import add_model_arguments as add_model_arguments
from catekv.commands.arguments import add_output_arguments as add_output_arguments
from catekv.commands.arguments import integers as integers
from catekv.commands.arguments import options_from as options_from
from catekv.errors import UserError
from catekv.version import __version__

USAGE_ERROR = 2
INTERRUPTED = 130

#: Every command: its name, what it is for, and the module with its ``add_arguments(parser)`` and
#: ``run(arguments)``, which is imported when the command is used.
COMMANDS = (
    ("evaluate", "Accuracy of methods on tasks, side by side.", "catekv.commands.evaluate"),
    (
        "efficiency",
        "Latency, memory and throughput of a method against full.",
        "catekv.commands.efficiency",
    ),
    (
        "calibrate",
        "Make head masks for a model from a reference set.",
        "catekv.commands.calibrate",
    ),
    (
        "cokv",
        "Score KV heads by a cooperative game (CoKV), choose alpha, show scores.",
        "catekv.commands.cokv",
    ),
    ("atskv", "Train relevance predictors (ATSKV), show them.", "catekv.commands.atskv"),
    ("mask", "Show, convert or make head masks.", "catekv.commands.mask"),
    ("tasks", "List tasks, or build their samples as JSONL.", "catekv.commands.tasks"),
    ("methods", "List methods and their options.", "catekv.commands.methods"),
    ("generate", "Ask questions about a text file.", "catekv.commands.generate"),
    ("plan", "Memory and speed to expect, without running anything.", "catekv.commands.plan"),
    (
        "sweep",
        "Many runs over models, methods, ratios, tasks and lengths, on one machine or many.",
        "catekv.commands.sweep",
    ),
    ("report", "Summary and report of runs, as HTML and Markdown.", "catekv.commands.report"),
    (
        "doctor",
        "Versions, devices, active kernels, fit of a model: for bug reports.",
        "catekv.commands.doctor",
    ),
)

Handler = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line with the remedy, and exit code 2.

    ``add_later`` adds options when the parser is first used: they may live in a module that is
    slow to import.
    """

    add_later: Callable[[Parser], None] | None = None

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        if self.add_later is not None:
            add, self.add_later = self.add_later, None
            add(self)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"error: {message}; see `{self.prog} --help`\n")


def run_safely(action: Callable[[], int]) -> int:
    """Run a command; user mistakes become one line on stderr, interruption a kind word.

    Returns the exit code.
    """
    try:
        return action()
    except UserError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print(
            "\ninterrupted; finished records are kept, the same command goes on with them",
            file=sys.stderr,
        )
        return INTERRUPTED
    except BrokenPipeError:
        # the reader of our output went away (`catekv ... | head`); nothing is wrong
        sys.stderr.close()
        return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the command ``catekv`` and of ``python -m catekv``."""
    parser = make_parser()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words:
        parser.print_help()
        return USAGE_ERROR
    parsed = parser.parse_args(words)
    parsed.command_line = shlex.join(["catekv", *words])
    handler: Handler = parsed.handler
    return run_safely(lambda: handler(parsed))


def make_parser() -> Parser:
    """The parser of all commands, whose modules are imported when they are used."""
    parser = Parser(
        prog="catekv", description="Head-wise compressed KV caches: evaluate, measure, calibrate."
    )
    parser.add_argument("--version", action="version", version=f"catekv {__version__}")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=Parser
    )
    for name, about, module in COMMANDS:
        command = commands.add_parser(name, help=about, description=about)
        command.add_later = _later(module)
        command.set_defaults(handler=_handler(module))
    return parser


def _later(module: str) -> Callable[[Parser], None]:
    return lambda parser: importlib.import_module(module).add_arguments(parser)


def _handler(module: str) -> Handler:
    return lambda arguments: int(importlib.import_module(module).run(arguments))
