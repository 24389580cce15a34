"""Every program of a decode launch gets the same share, whatever the row lengths."""

from __future__ import annotations

import pytest
import torch

from catekv.kernels.ragged import RaggedPrefix, from_rows
from catekv.kernels.work_plan import work_plan

#: As on a chip with 132 multiprocessors and two programs each.
PROGRAMS = 264
BLOCK = 64


def prefix(lengths: list[int]) -> RaggedPrefix:
    """Row lengths without storage behind them: the plan looks at nothing else."""
    rows, start = [], 0
    for length in lengths:
        rows.append((start, length))
        start += length
    empty = torch.empty(1).expand(start, 1)
    return from_rows(empty, empty, None, rows, len(lengths))


def work(lengths: list[int], programs: int = PROGRAMS, block: int = BLOCK) -> list[int]:
    """Blocks each program reads, walked as the kernel walks them; checks that all are read."""
    plan = work_plan(prefix(lengths), block, programs)
    starts = plan.block_start.tolist()
    read = [0] * len(lengths)
    shares, segments = [], set()
    for program in range(plan.programs):
        position = program * plan.per_program
        last = min(position + plan.per_program, starts[-1])
        row = int(plan.first_row[program])
        shares.append(last - position)
        while position < last:
            stop = min(last, starts[row + 1])
            if position < stop:
                assert (program + row) not in segments
                segments.add(program + row)
                assert position - starts[row] == read[row]
                read[row] += stop - position
            position = stop
            row += 1
    assert read == [-(-length // block) for length in lengths]
    assert not segments or max(segments) < plan.segments
    return shares


MIXTURES = {
    "one long head beside nine short": [512_000] + [2048] * 9,
    "all long": [512_000] * 8,
    "adaptive and consistent": [131_072, 2080, 2080, 131_072, 2080, 2080, 131_072, 2080],
    "many short rows": [2080] * 512,
    "many one-token rows": [1] * 4096,
    "geometric": [2**power for power in range(20)],
    "primes and empty rows": [0, 104_729, 0, 0, 7, 15_485_863, 0, 3],
    "batch of ragged sequences": [(row * 7919) % 40_000 for row in range(64 * 8)],
}


@pytest.mark.parametrize("lengths", MIXTURES.values(), ids=MIXTURES.keys())
def test_no_program_gets_more_than_a_tenth_above_the_mean(lengths: list[int]):
    shares = work(lengths)
    assert max(shares) <= 1.1 * sum(shares) / len(shares)


@pytest.mark.parametrize("lengths", MIXTURES.values(), ids=MIXTURES.keys())
def test_long_prefixes_keep_every_program_busy(lengths: list[int]):
    shares = work(lengths)
    total = sum(shares)
    assert len(shares) <= PROGRAMS
    assert len(shares) >= min(total, PROGRAMS) / 2
    if total > 10 * PROGRAMS:
        assert len(shares) > 0.9 * PROGRAMS


@pytest.mark.parametrize("lengths", [[5], [64], [65], [1] * 30, [640] * 3, [0, 1]])
def test_short_prefixes_are_covered(lengths: list[int]):
    shares = work(lengths)
    assert sum(shares) == sum(-(-length // BLOCK) for length in lengths)


def test_an_empty_prefix_needs_no_programs():
    assert work([0, 0, 0]) == []


def test_the_plan_of_a_prefix_is_made_once():
    one = prefix([100, 200])
    assert work_plan(one, 64, 8) is work_plan(one, 64, 8)
    assert work_plan(one, 64, 8) is not work_plan(one, 64, 4)
