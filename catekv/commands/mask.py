"""The command ``catekv mask``."""

from __future__ import annotations

import argparse
from pathlib import Path

from catekv.commands.numbers import whole
from catekv.errors import UserError
from catekv.options import MOST_HEADS, MOST_LAYERS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The actions of ``catekv mask``."""
    actions = parser.add_subparsers(
        title="actions", metavar="ACTION", required=True, parser_class=type(parser), dest="action"
    )
    show = actions.add_parser("show", help="print which heads are adaptive")
    show.add_argument("path", type=Path)
    show.add_argument("--ratio", type=float, help="which mask of a folder")
    convert = actions.add_parser(
        "convert", help="DuoAttention pattern or stored statistics to mask files"
    )
    convert.add_argument("path", type=Path)
    convert.add_argument("output", type=Path)
    convert.add_argument("--ratios", type=float, nargs="+", required=True)
    random = actions.add_parser("random", help="a mask of random heads, for comparison")
    random.add_argument("output", type=Path)
    random.add_argument("--layers", type=whole(1, MOST_LAYERS), required=True)
    random.add_argument("--kv-heads", type=whole(1, MOST_HEADS), required=True)
    random.add_argument("--ratio", type=float, required=True)
    random.add_argument("--seed", type=int, default=0)


def run(arguments: argparse.Namespace) -> int:
    """The command; returns the exit code."""
    from catekv.methods.head_mask import HeadMask

    if arguments.action == "show":
        print(HeadMask.load(arguments.path, arguments.ratio).show())
    elif arguments.action == "convert":
        for ratio in arguments.ratios:
            print(HeadMask.load(arguments.path, ratio).save(arguments.output))
    else:
        if min(arguments.layers, arguments.kv_heads) < 1:
            raise UserError("a mask needs at least one layer and one KV head; give both above 0")
        shape = (arguments.layers, arguments.kv_heads)
        print(HeadMask.random(shape, arguments.ratio, arguments.seed).save(arguments.output))
    return 0
