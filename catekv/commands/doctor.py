"""The command ``catekv doctor``."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``catekv doctor``."""
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="local folder, .gguf file or hub name: can it be compressed here?",
    )
    parser.add_argument(
        "--mask", metavar="SOURCE", help="head mask, folder or file: does it fit the model?"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """The command; returns the exit code."""
    from catekv.commands import doctor_report

    return doctor_report.run(arguments)
