"""``catekv``: thin commands over the functions of the package.

Exit codes: 0 done; 1 the run finished but samples failed; 2 wrong usage or input (one line on
stderr says what and what to do); 130 interrupted (records are kept).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from catekv.commands.numbers import real, shown, whole
from catekv.commands.words import explained
from catekv.errors import UserError
from catekv.files import refusal
from catekv.version import __version__

USAGE_ERROR = 2
INTERRUPTED = 130

#: Every command: its name, what it is for, and its module, which is imported when the command is
#: used. ``OPTIONS`` in it are groups of options, and ``run(arguments)`` returns the exit code; or
#: ``OPTIONS`` are actions by name, each with groups and a ``run`` of its own. ``ABOUT`` in it
#: opens the command's help instead of the line here.
COMMANDS = (
    (
        "check",
        "Does compression hurt this model? One sentence, in minutes.",
        "catekv.commands.check",
    ),
    ("evaluate", "Accuracy of methods on tasks, side by side.", "catekv.commands.evaluate"),
    (
        "fidelity",
        "How far a method's predictions are from the full cache's, on your text.",
        "catekv.commands.fidelity",
    ),
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
    (
        "triattention",
        "Measure the mean queries of a model's heads for TriAttention.",
        "catekv.commands.triattention",
    ),
    (
        "kvzap",
        "Train gates that foretell KVzip (KVzap), show them.",
        "catekv.commands.kvzap",
    ),
    ("mask", "Show, convert or make head masks.", "catekv.commands.mask"),
    (
        "heads",
        "Which heads need their entries: measure, compare, import, export.",
        "catekv.commands.heads",
    ),
    ("tasks", "List tasks, or build their samples as JSONL.", "catekv.commands.tasks"),
    ("methods", "List methods and their options.", "catekv.commands.methods"),
    ("generate", "Ask questions about a text file.", "catekv.commands.generate"),
    ("plan", "Memory and speed to expect, without running anything.", "catekv.commands.plan"),
    (
        "sweep",
        "Many runs over models, methods, ratios, tasks and lengths, on one machine or many.",
        "catekv.commands.sweep",
    ),
    (
        "lm-eval",
        "lm-evaluation-harness with compressed caches; all options are the harness's own.",
        "catekv.commands.lm_eval",
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

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # numbers that no library can hold are refused here, whatever the option
        self.register("type", int, whole())
        self.register("type", float, real())

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        if self.add_later is not None:
            add, self.add_later = self.add_later, None
            add(self)
        self._refuse_empty(sys.argv[1:] if args is None else args)
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            # said here, because the parser of all commands would send to its own help
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def _refuse_empty(self, words: Sequence[str]) -> None:
        """An empty value is a variable of a script that was not set, never a wish."""
        for before, word in zip(("", *words), words, strict=False):
            option, equals, value = word.partition("=")
            joined = bool(equals) and option.startswith("--") and not value.strip()
            if joined or not word.strip():
                name = option if joined else before if before.startswith("-") else "an argument"
                self.error(f"{name} is empty; give a value or leave it out")

    def format_help(self) -> str:
        """What it is for comes first: the usage of many options fills a screen."""
        formatter = self._get_formatter()
        formatter.add_text(self.description)
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        for group in self._action_groups:
            formatter.start_section(group.title)
            formatter.add_text(group.description)
            formatter.add_arguments(group._group_actions)
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"error: {message}; see `{self.prog} --help`\n")


def run_safely(action: Callable[[], int]) -> int:
    """Run a command; user mistakes become one line on stderr, interruption a kind word.

    Returns the exit code. What the system refuses is a user's mistake as well: a full disk, a file
    without permission.
    """
    try:
        return _written(action)
    except UserError as error:
        _complain(str(error))
        return USAGE_ERROR
    except KeyboardInterrupt:
        print(
            "\ninterrupted; finished records are kept, the same command goes on with them and "
            "begins anew where it keeps none",
            file=sys.stderr,
        )
        return INTERRUPTED
    except BrokenPipeError:
        # the reader of our output went away (`catekv ... | head`); nothing is wrong
        return 0
    except UnicodeEncodeError as error:
        text = shown(str(error.object))
        _complain(f"{text} holds half a character (a lone surrogate); correct that name or text")
        return USAGE_ERROR
    except OSError as error:
        if error.errno is None:
            raise
        place = error.filename if error.filename is not None else "the output"
        _complain(str(refusal(f"cannot use {place}", error)))
        return USAGE_ERROR
    finally:
        _leave_output()


def _written(action: Callable[[], int]) -> int:
    """Run a command and write out what it printed, which the interpreter would do too late."""
    try:
        code = action()
    except SystemExit:
        _flush()
        raise
    _flush()
    return code


def _complain(message: str) -> None:
    # where standard error cannot be written either, the exit code remains
    with contextlib.suppress(OSError):
        print("error: " + " ".join(message.split()), file=sys.stderr)


def _flush() -> None:
    # a process may be started without standard output
    if sys.stdout is not None:
        sys.stdout.flush()


def _leave_output() -> None:
    """Drop what standard output could not take: the interpreter's own attempt would complain."""
    try:
        _flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the command ``catekv`` and of ``python -m catekv``."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # names of files may hold bytes that no encoding of a terminal has
            stream.reconfigure(errors="backslashreplace")
    return run_safely(lambda: _command(words))


def _command(words: list[str]) -> int:
    parser = make_parser()
    if not words:
        parser.print_help()
        return USAGE_ERROR
    parsed = parser.parse_args(words)
    parsed.command_line = shlex.join(["catekv", *words])
    if getattr(parsed, "plugins", ()):
        from catekv.evaluation.plugins import load_plugins

        load_plugins(parsed.plugins)
    handler: Handler = parsed.handler
    return explained(lambda: handler(parsed), parsed.parser)


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
        command.set_defaults(handler=_handler(module), parser=command)
    return parser


def _later(module: str) -> Callable[[Parser], None]:
    def add(parser: Parser) -> None:
        from catekv.commands.schema import add_options

        loaded = importlib.import_module(module)
        if hasattr(loaded, "ABOUT"):
            # its lines of commands must not be filled up
            parser.formatter_class = argparse.RawDescriptionHelpFormatter
            parser.description = loaded.ABOUT
        add_options(parser, loaded.OPTIONS)

    return add


def _handler(module: str) -> Handler:
    return lambda arguments: int(importlib.import_module(module).run(arguments))
