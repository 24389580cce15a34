"""Options that several commands share, declared in :class:`Request`; loads nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from catekv.commands import schema
from catekv.evaluation.run.request import METHODS, MODEL, Request


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that say which model runs, and how."""
    schema.add_arguments(parser, Request, MODEL)


def add_template_argument(parser: argparse.ArgumentParser, separator: str = "-") -> None:
    """How prompts are wrapped; read it with :func:`catekv.tasks.core.prompt.template_name`."""
    schema.add_arguments(parser, Request, ("chat_template",), separator=separator)


def add_method_arguments(parser: argparse.ArgumentParser, default: Sequence[str]) -> None:
    """Options that say which methods run, with which masks."""
    schema.add_arguments(parser, Request, METHODS, defaults={"methods": tuple(default)})
