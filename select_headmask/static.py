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

from catekv.calibration import vote
from catekv.calibration.head_masks.cv_files import read_folder
from catekv.calibration.head_masks.voting import Voting
from catekv.commands.cli import Parser, run_safely
from catekv.commands.schema import Group
from catekv.methods.head_mask import save_statistics
from catekv.methods.head_votes import check_ratio

_PAIR = re.compile(r"(?P<task>.+)_fraction(?P<k>[\d.]+)_top(?P<alpha>[\d.]+)_lastq(?P<window>\d+)")


VOTING = Group(Voting, separator="_")


def make_masks(voting: Voting) -> int:
    """Read the CVs, vote at every ratio, write masks and statistics."""
    ratios = [check_ratio(ratio) for ratio in voting.ratios]
    cvs = read_folder(voting.input, voting.num_samples, voting.seed)
    recipe: dict[str, object] = {"seed": voting.seed}
    named = _PAIR.fullmatch(voting.input.resolve().name)
    if named:
        recipe.update(
            reference=named["task"],
            k=float(named["k"]),
            alpha=float(named["alpha"]),
            window=int(named["window"]),
        )
    for ratio in ratios:
        mask = vote(cvs, ratio, voting.static_vote, voting.vote_count, recipe=recipe)
        mask = dataclasses.replace(mask, meta={**mask.meta, "model": voting.model})
        path = mask.save(voting.output)
        count = int(mask.adaptive.sum())
        print(f"{path}  {count} of {mask.adaptive.numel()} heads adaptive")
    save_statistics(voting.output, cvs, model=voting.model, recipe=recipe)
    return 0


def main(words: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    VOTING.add(parser)
    arguments = parser.parse_args(words)
    return run_safely(lambda: make_masks(VOTING.read(arguments)))


if __name__ == "__main__":
    sys.exit(main())
