"""Options that several commands share, and their values; loads nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from catekv.commands.numbers import MOST_TOKENS, shown
from catekv.errors import UserError


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that say which model runs, and how."""
    parser.add_argument(
        "--model", metavar="MODEL", help="local folder or hub name (default: the embedded model)"
    )
    parser.add_argument(
        "--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default: auto)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--attention", default="auto", help="attention of the prefill: auto, sdpa, eager, ..."
    )


def add_method_arguments(parser: argparse.ArgumentParser, default: Sequence[str]) -> None:
    """Options that say which methods run, with which masks."""
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(default),
        metavar="METHOD",
        help=f"[LABEL=]NAME[:option=value,...] (default: {' '.join(default)}), or a JSON or YAML "
        "file with a list of methods; `catekv methods` lists names and options",
    )
    parser.add_argument(
        "--mask",
        action="append",
        default=[],
        metavar="[NAME=]SOURCE",
        help="head mask: folder, CSV, DuoAttention TSV, random:SEED or reversed; may be repeated, "
        "catekv then appears once per mask",
    )
    parser.add_argument("--ratio", type=float, help="r, share of adaptive heads (default: 0.4)")
    parser.add_argument(
        "--retention", type=float, help="eta, share of chunks adaptive heads keep (default: 1)"
    )
    parser.add_argument(
        "--budget", type=int, help="b, tokens a consistent head keeps (default: 2048)"
    )


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that say where results go."""
    parser.add_argument("--output", type=Path, help="run directory (default: one under results/)")
    parser.add_argument(
        "--overwrite", action="store_true", help="delete the results in the run directory first"
    )
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on where an earlier run of the same configuration stopped (default)",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="progress as plain lines for a log, no bar"
    )


def integers(option: str, texts: Sequence[str]) -> tuple[int, ...]:
    """Whole numbers from words; ``UserError`` names the option and the bad word."""
    for text in texts:
        if not text.isdecimal():
            raise UserError(f"{option} takes whole numbers of tokens, not {shown(text)}; e.g. 4096")
        if len(text) > 10 or int(text) > MOST_TOKENS:
            raise UserError(
                f"{option} {shown(text)} is out of range; give a whole number up to {MOST_TOKENS}"
            )
    return tuple(int(text) for text in texts)


def options_from(option: str, texts: Sequence[str]) -> dict[str, object]:
    """NAME=VALUE words as a dict; ``UserError`` names the option and the bad word."""
    from catekv.evaluation.columns.specification import parse_value

    values: dict[str, object] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"{option} takes NAME=VALUE, not {text!r}")
        values[name] = parse_value(value)
    return values
