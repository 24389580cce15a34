"""Equal shares of a ragged prefix: which program of a decode launch reads which entries.

The rows of a layer are laid end to end in blocks of ``block`` entries (a row's last block may be
partly filled), and every program takes the same number of consecutive blocks, whatever rows they
belong to: one row of half a million entries is read by all programs, a hundred short ones by a few.
The prefix is immutable, so the plan is made once; it lives on the device, and a launch needs
nothing from the host but the number of programs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from catekv.kernels.ragged import RaggedPrefix


@dataclass(frozen=True, eq=False)
class WorkPlan:
    """Shares of one prefix.

    Attributes:
        block: entries per block.
        per_program: blocks a program reads (the last one may have fewer).
        programs: how many programs have work.
        block_start: int32 [rows + 1], blocks before each row; the last entry is their total.
        first_row: int32 [programs], the row of each program's first block.

    A program's share of one row is a *segment*. Segment ``program + row`` is unique, because the
    one or the other grows from each segment to the next, so partial results need no lookup:
    there are at most ``programs + rows`` of them.
    """

    block: int
    per_program: int
    programs: int
    block_start: Tensor
    first_row: Tensor

    @property
    def segments(self) -> int:
        """Bound on the number of partial results."""
        return self.programs + self.block_start.shape[0] - 1


_plans: WeakKeyDictionary[RaggedPrefix, dict[tuple[int, int], WorkPlan]] = WeakKeyDictionary()


def work_plan(prefix: RaggedPrefix, block: int, programs: int) -> WorkPlan:
    """The plan for at most ``programs`` programs; the same object for the same arguments.

    Made from the lengths the host knows already: nothing waits for the device.
    """
    plans = _plans.setdefault(prefix, {})
    plan = plans.get((block, programs))
    if plan is None:
        lengths = [length for _, length in prefix.host_rows]
        plan = plans[block, programs] = _make(lengths, block, programs, prefix.keys.device)
    return plan


def _make(lengths: Sequence[int], block: int, programs: int, device: torch.device) -> WorkPlan:
    starts = [0, *accumulate(-(-length // block) for length in lengths)]
    total = starts[-1]
    per_program = max(1, -(-total // programs))
    used = -(-total // per_program)
    # bisect skips rows without blocks: they start where the next row starts
    first = [bisect_right(starts, index * per_program) - 1 for index in range(used)]
    return WorkPlan(
        block,
        per_program,
        used,
        torch.tensor(starts, dtype=torch.int32, device=device),
        torch.tensor(first, dtype=torch.int32, device=device),
    )
