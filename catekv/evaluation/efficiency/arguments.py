"""Options of the efficiency commands that the published script does not have; loads no torch."""

from __future__ import annotations

import argparse
from pathlib import Path

#: Numbers per decode measurement unless asked otherwise.
NEW_TOKENS, REPEATS = 32, 3
#: Implementations of full attention, in the order of the rows.
BASELINES = ("kernel", "sdpa", "flex", "flash", "flashinfer", "dynamic")
#: What :func:`add_measuring_arguments` adds, as attributes of the parsed arguments.
MEASURING = (
    "repeats", "fill", "scale", "throughput", "baselines", "graph", "memory", "layers",
    "random_weights", "output",
)  # fmt: skip


def add_measuring_arguments(parser: argparse.ArgumentParser, separator: str = "-") -> None:
    """Options that both commands spell alike, with their own character between words."""

    def add(name: str, *arguments: object, **options: object) -> None:
        parser.add_argument("--" + name.replace("-", separator), *arguments, **options)  # type: ignore[arg-type]

    add("repeats", type=int, default=REPEATS, help="rounds in which the variants take turns")
    add(
        "fill",
        choices=("random", "prefill"),
        help="caches of random entries at the lengths a prompt would leave (seconds; default with "
        "random weights), or of a real prompt",
    )
    add(
        "scale",
        type=float,
        metavar="S",
        help="shrink a known shape: layers, heads, width and length times S (0 < S <= 1), to try "
        "it on a CPU",
    )
    add("throughput", action="store_true", help="the largest batch that fits instead of given ones")
    add(
        "baselines",
        nargs="+",
        choices=BASELINES,
        metavar="NAME",
        help=f"full attention by: {', '.join(BASELINES)} (default: all; with --throughput: kernel)",
    )
    add(
        "graph",
        choices=("auto", "on", "off"),
        default="auto",
        help="decode from a CUDA graph where possible (default), always, or never",
    )
    add("memory", type=float, metavar="GIB", help="use at most so much beside the weights")
    add("layers", type=int, help="only so many layers of a known shape")
    add("random-weights", action="store_true", help="MODEL is a known shape (found out by itself)")
    add("output", type=Path, help="write efficiency.json, .md and .png into this folder")
