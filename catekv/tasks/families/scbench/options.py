"""Options of SCBench: how the questions of a session are put."""

from __future__ import annotations

from dataclasses import dataclass

from catekv.errors import UserError
from catekv.tasks.core.task import at_least_one
from catekv.tasks.rows.sources import DataOptions

MULTI_REQUEST, MULTI_TURN = "multi_request", "multi_turn"
MODES = (MULTI_REQUEST, MULTI_TURN)
#: tokens of the longest published prompt
MAX_SEQUENCE = 131_072
#: tokens that multi-request prompts leave free besides
_REQUEST_MARGIN = 1000


@dataclass(frozen=True, kw_only=True)
class SessionOptions(DataOptions):
    """Options besides :class:`DataOptions`.

    Attributes:
        mode: ``multi_request``: every question is asked of the same compressed context;
            ``multi_turn``: the questions before it stand in front of it with their right answers,
            so that errors do not spread.
        turns: questions of a session; rows that have more lose the others.
    """

    mode: str = MULTI_REQUEST
    turns: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "turns")
        if self.mode not in MODES:
            raise UserError(f"mode={self.mode!r}; use one of {', '.join(MODES)}")


def input_limit(
    task: str, turns: int, mode: str = MULTI_TURN, max_sequence: int = MAX_SEQUENCE
) -> int:
    """Tokens that the first turn may have in the published runs: what the answers of all turns
    leave over, in multi-request mode 1,000 less."""
    from catekv.tasks.families.scbench.table import answer_room

    room = max_sequence - answer_room(task.removeprefix("scbench/").removeprefix("scbench_"), turns)
    return room - (_REQUEST_MARGIN if mode == MULTI_REQUEST else 0)


def kept_positions(length: int, limit: int) -> list[int]:
    """Positions that the published truncation keeps: half of the limit from each end."""
    if length <= limit:
        return list(range(length))
    half = limit // 2
    return [*range(half), *range(length - half, length)]
