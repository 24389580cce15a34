"""The sanitiser finds what is planted, and passes what is sound."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton has no package for this platform")

import triton
import triton.language as tl
from sanitiser import SanitiserError, sanitised, shuffled

SIZE = 8


@triton.jit
def _copy(source, target, size, start, store_size, block: tl.constexpr):
    """Blocks of ``source`` from ``start`` on to those of ``target``, with a bound for each."""
    place = tl.program_id(0) * block + tl.arange(0, block)
    values = tl.load(source + start + place, mask=place < size)
    tl.store(target + place, values, mask=place < store_size)


@triton.jit
def _overlapping(target, step: tl.constexpr, block: tl.constexpr):
    place = tl.program_id(0) * step + tl.arange(0, block)
    tl.store(target + place, tl.program_id(0) + tl.zeros([block], tl.int32))


@triton.jit
def _chain(target):
    """Each program continues where the one before it stopped."""
    program = tl.program_id(0)
    tl.store(target + program + 1, tl.load(target + program) + 1)


@triton.jit
def _count(counts, hits, block: tl.constexpr):
    """All programs add to the same elements, which is sound, and read one if ``hits`` is given."""
    tl.atomic_add(counts + tl.arange(0, block), 1)
    if hits is not None:
        tl.store(hits + tl.program_id(0), tl.load(counts))


@triton.jit
def _mark(target):
    x, y, z = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    place = (x * tl.num_programs(1) + y) * tl.num_programs(2) + z
    tl.store(target + place, tl.load(target + place) + 1)


@pytest.fixture(autouse=True)
def _kernels_are_sanitised() -> None:
    """Not here: each test says what it is watched by."""


@pytest.fixture
def watched() -> Iterator[None]:
    with sanitised(0):
        yield


def copy(size: int = SIZE, start: int = 0, store_size: int = SIZE, source: Tensor | None = None):
    target = torch.zeros(SIZE)
    source = torch.arange(float(SIZE)) if source is None else source
    _copy[(2,)](source, target, size, start, store_size, block=SIZE // 2)
    return target


@pytest.mark.usefixtures("watched")
def test_what_is_sound_passes_and_computes_the_same() -> None:
    assert torch.equal(copy(), torch.arange(float(SIZE)))
    counts = torch.zeros(4, dtype=torch.int32)
    _count[(5,)](counts, None, block=4)
    assert counts.tolist() == [5] * 4


@pytest.mark.usefixtures("watched")
def test_a_load_outside_of_its_operand_is_found() -> None:
    with pytest.raises(
        SanitiserError, match=r"kernel _copy, program \(1, 0, 0\), loads 0 bytes beh"
    ):
        copy(start=2)


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("start", [-1, 1 << 20])
def test_the_message_names_operand_and_statement(start: int) -> None:
    with pytest.raises(SanitiserError, match=r"of source: test_sanitiser.py:\d+: values = tl.load"):
        copy(start=start)


@pytest.mark.usefixtures("watched")
def test_a_view_ends_where_it_ends_though_its_storage_goes_on() -> None:
    room = torch.zeros(4 * SIZE)
    assert torch.equal(copy(source=room[:SIZE]), room[:SIZE])
    with pytest.raises(SanitiserError, match=r"0 bytes behind the end of source"):
        copy(start=1, source=room[:SIZE])


@pytest.mark.usefixtures("watched")
def test_another_operand_is_no_excuse() -> None:
    """Reading beyond one operand and into another one of the launch."""
    room = torch.zeros(2 * SIZE)
    with pytest.raises(SanitiserError, match=r"the end of source"):
        _copy[(2,)](room[:SIZE], room[SIZE:], SIZE, 4, SIZE, block=SIZE // 2)


@pytest.mark.usefixtures("watched")
def test_a_store_outside_of_its_operand_is_found_and_not_made() -> None:
    room = torch.zeros(2 * SIZE)
    with pytest.raises(SanitiserError, match=r"stores 0 bytes behind the end of target.*tl\.store"):
        _copy[(1,)](torch.ones(2 * SIZE), room[:SIZE], 2 * SIZE, 0, 2 * SIZE, block=2 * SIZE)
    assert not room.any()


@pytest.mark.usefixtures("watched")
def test_two_programs_that_store_to_one_element_are_found() -> None:
    target = torch.zeros(SIZE, dtype=torch.int32)
    _overlapping[(2,)](target, step=4, block=4)
    with pytest.raises(SanitiserError, match=r"two programs store and store .* byte 8 of target"):
        _overlapping[(2,)](target, step=2, block=4)


@pytest.mark.usefixtures("watched")
def test_a_program_that_reads_what_another_one_stores_is_found() -> None:
    with pytest.raises(SanitiserError, match=r"kernel _chain, program .* load and store the same"):
        _chain[(3,)](torch.zeros(4, dtype=torch.int32))


@pytest.mark.usefixtures("watched")
def test_a_program_that_reads_what_others_add_to_is_found() -> None:
    counts, hits = (torch.zeros(4, dtype=torch.int32) for _ in range(2))
    with pytest.raises(SanitiserError, match=r"load and change atomically .* byte 0 of counts"):
        _count[(4,)](counts, hits, block=4)


@pytest.mark.usefixtures("watched")
def test_what_a_masked_load_leaves_open_is_no_zero() -> None:
    assert copy(size=6)[6:].isnan().all()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_shuffled_order_shows_what_depends_on_it(seed: int) -> None:
    results = []
    for _ in range(2):
        target = torch.zeros(9, dtype=torch.int32)
        with shuffled(seed):
            _chain[(8,)](target)
        results.append(target.tolist())
    assert results[0] != list(range(9))
    assert results[0] == results[1]


def test_every_program_runs_once() -> None:
    with shuffled(3):
        target = torch.zeros(60, dtype=torch.int32)
        _mark[(3, 4, 5)](target)
        assert target.tolist() == [1] * 60


def test_nothing_stays_patched() -> None:
    with sanitised(0):
        pass
    _overlapping[(2,)](torch.zeros(SIZE, dtype=torch.int32), step=2, block=4)
    assert not copy(size=6)[6:].any()
