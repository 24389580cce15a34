"""The command ``catekv lm-eval``: lm-evaluation-harness with the model ``catekv`` in it."""

from __future__ import annotations

import argparse
import sys
import traceback

from catekv.commands.schema import PassedOn
from catekv.errors import UserError
from catekv.files import read_yaml

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

    words = with_our_model(list(arguments.words))
    from catekv.loading import first_line

    before, sys.argv = sys.argv, ["catekv lm-eval", *words]
    try:
        cli_evaluate()
    except UserError:
        raise
    except Exception as error:
        if _ours_ran(error) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise UserError(
            f"the harness stopped with {type(error).__name__}: {first_line(error)}; see `catekv "
            "lm-eval run --help`"
        ) from error
    finally:
        sys.argv = before
    return 0


def with_our_model(words: list[str]) -> list[str]:
    """The words with the model ``catekv`` named first, so that another one beats it; not where a
    file of settings names one, which words would beat."""
    own = words[:1] == ["run"]
    if {"-h", "--help"} & set(words) or not (own or not words or words[0].startswith("-")):
        return words
    for before, word in zip(("", *words), words, strict=False):
        joined = word.startswith("--config=")
        if joined or before in ("--config", "-C"):
            settings = read_yaml(word.partition("=")[2] if joined else word)
            if isinstance(settings, dict) and settings.get("model"):
                return words
    return ["run", "--model", "catekv", *(words[1:] if own else words)]


def _ours_ran(error: Exception) -> bool:
    """Whether code of this package was running below the harness: then the error may be ours."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][1:]
    return any(frame.f_globals["__name__"].startswith("catekv.") for frame in frames)
