"""The command ``catekv efficiency``."""

from __future__ import annotations

import argparse

from catekv.commands.arguments import add_method_arguments, add_model_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``catekv efficiency``."""
    from catekv.evaluation.efficiency.arguments import NEW_TOKENS, add_measuring_arguments

    add_model_arguments(parser)
    parser.add_argument(
        "--lengths",
        "--length",
        nargs="+",
        default=["4096"],
        metavar="TOKENS",
        help="context lengths in tokens (default: 4096)",
    )
    add_method_arguments(parser, ("catekv",))
    parser.add_argument(
        "--new-tokens",
        type=int,
        default=NEW_TOKENS,
        help=f"decode steps measured per round (default: {NEW_TOKENS})",
    )
    parser.add_argument(
        "--batch-sizes",
        nargs="+",
        default=["1"],
        metavar="N",
        help="batch sizes (default: 1), or max: the largest that fits",
    )
    add_measuring_arguments(parser)
    parser.add_argument(
        "--chunk-size", type=int, default=8192, help="tokens per prefill chunk (default: 8192)"
    )


def run(arguments: argparse.Namespace) -> int:
    """The command; returns the exit code."""
    from catekv.commands import efficiency_run

    return efficiency_run.run(arguments)
