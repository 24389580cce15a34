"""Turn the per-sample CV files of a reference pass into head masks.

    python select_headmask/static.py --input DIR --output DIR --ratios 0.05 0.1 0.4

DIR is one folder of a reference pass (headmask_new<model>/vt_fraction0.99_top1.0_lastq64):
one CSV file per sample, one line per layer, one number per KV head.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from catekv.calibration import vote
from catekv.calibration.head_masks.cv_files import read_folder
from catekv.commands.cli import Parser, run_safely
from catekv.methods.head_mask import save_statistics
from catekv.methods.head_votes import STANDARD_RATIOS, STATIC_VOTES, VOTE_COUNTS, check_ratio

_PAIR = re.compile(r"(?P<task>.+)_fraction(?P<k>[\d.]+)_top(?P<alpha>[\d.]+)_lastq(?P<window>\d+)")


def make_masks(arguments: argparse.Namespace) -> int:
    """Read the CVs, vote at every ratio, write masks and statistics."""
    ratios = [check_ratio(ratio) for ratio in arguments.ratios]
    cvs = read_folder(arguments.input, arguments.num_samples, arguments.seed)
    recipe: dict[str, object] = {"seed": arguments.seed}
    named = _PAIR.fullmatch(arguments.input.resolve().name)
    if named:
        recipe.update(
            reference=named["task"],
            k=float(named["k"]),
            alpha=float(named["alpha"]),
            window=int(named["window"]),
        )
    for ratio in ratios:
        mask = vote(cvs, ratio, arguments.static_vote, arguments.vote_count, recipe=recipe)
        mask = dataclasses.replace(mask, meta={**mask.meta, "model": arguments.model})
        path = mask.save(arguments.output)
        count = int(mask.adaptive.sum())
        print(f"{path}  {count} of {mask.adaptive.numel()} heads adaptive")
    save_statistics(arguments.output, cvs, model=arguments.model, recipe=recipe)
    return 0


def main(words: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--input", type=Path, required=True, metavar="DIR", help="folder of per-sample CV files")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the masks")
    add(
        "--ratios",
        nargs="+",
        type=float,
        default=list(STANDARD_RATIOS),
        metavar="R",
        help="shares of adaptive heads in (0, 1] (default: the twelve published ones)",
    )
    add(
        "--static_vote",
        choices=STATIC_VOTES,
        default="per_ratio",
        help="votes at the ratio itself, or summed over all smaller ratios as the published masks",
    )
    add(
        "--vote_count",
        choices=VOTE_COUNTS,
        default="exact",
        help="exactly ceil(R * heads), or every head tied with the last of those",
    )
    add("--num_samples", type=int, help="draw so many of the files (default: all)")
    add("--seed", type=int, default=42, help="of that draw (default: 42)")
    add("--model", help="recorded in meta.json")
    arguments = parser.parse_args(words)
    return run_safely(lambda: make_masks(arguments))


if __name__ == "__main__":
    sys.exit(main())
