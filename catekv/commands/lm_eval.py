"""The command ``catekv lm-eval``: lm-evaluation-harness with the model ``catekv`` in it."""

from __future__ import annotations

import argparse
import sys
import traceback

from catekv.commands.schema import PassedOn
from catekv.errors import UserError

OPTIONS = (PassedOn(),)


def run(arguments: argparse.Namespace) -> int:
    """The command; returns the exit code."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise UserError(
            "the harness is not installed; install it with pip install 'catekv[lm-eval]'"
        ) from None
    from lm_eval.__main__ import cli_evaluate

    import catekv.evaluation.harness  # noqa: F401 - registers the model

    words = list(arguments.words)
    evaluates = not words or words[0] == "run" or words[0].startswith("-")
    if evaluates and "--model" not in words and not {"-h", "--help"} & set(words):
        words += ["--model", "catekv"]
    from catekv.loading import first_line

    before, sys.argv = sys.argv, ["catekv lm-eval", *words]
    try:
        cli_evaluate()
    except (UserError, OSError):
        raise
    except Exception as error:
        if _ours_ran(error):
            raise
        raise UserError(
            f"the harness stopped with {type(error).__name__}: {first_line(error)}; see `catekv "
            "lm-eval run --help`"
        ) from error
    finally:
        sys.argv = before
    return 0


def _ours_ran(error: Exception) -> bool:
    """Whether code of this package was running below the harness: then the error may be ours."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][1:]
    return any(frame.f_globals["__name__"].startswith("catekv.") for frame in frames)
