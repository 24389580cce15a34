"""What a reader or writer of head files is told, and what a reader finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from catekv.calibration.heads.formats.known_model import KnownModel
from catekv.calibration.heads.head_scores import Floats
from catekv.methods.head_votes import check_ratio


class Table(NamedTuple):
    """Scores [..., layers, heads] as they stand in a file, larger = needs more, and what the file
    says besides."""

    scores: Floats
    says: dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """Attributes:
    model: what is known of it.
    ratio: share of full heads.
    trust_pickle: consent to read a pickle.
    group_size, scope: heads of a cluster, and which heads it may be made of.
    tokens: length of the prompt of which heads keep shares.
    """

    model: KnownModel = field(default_factory=KnownModel)
    ratio: float | None = None
    trust_pickle: bool = False
    group_size: int = 4
    scope: str = "global"
    tokens: int = 4096

    def __post_init__(self) -> None:
        if self.ratio is not None:
            check_ratio(self.ratio)
