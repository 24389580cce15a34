"""Which statistics of a reference pass become head masks, and how their samples vote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from catekv.evaluation.options import REQUIRED, option
from catekv.methods.head_votes import STANDARD_RATIOS, STATIC_VOTES, VOTE_COUNTS


@dataclass(frozen=True)
class Voting:
    """Which CV files become masks, and how."""

    input: Path = option(REQUIRED, "folder of per-sample CV files", metavar="DIR")
    output: Path = option(REQUIRED, "folder for the masks", metavar="DIR")
    ratios: tuple[float, ...] = option(
        STANDARD_RATIOS,
        "shares of adaptive heads in (0, 1] (default: the twelve published ones)",
        metavar="R",
    )
    static_vote: str = option(
        "per_ratio",
        "votes at the ratio itself, or summed over all smaller ratios as the published masks",
        choices=STATIC_VOTES,
    )
    vote_count: str = option(
        "exact",
        "exactly ceil(R * heads), or every head tied with the last of those",
        choices=VOTE_COUNTS,
    )
    num_samples: int | None = option(None, "draw so many of the files (default: all)")
    seed: int = option(42, "of that draw (default: {default})")
    model: str | None = option(None, "recorded in meta.json")
