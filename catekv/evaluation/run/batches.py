"""Which samples are measured at once: batches of similar length, and questions of one context.

What is measured together depends on the samples alone, never on what was measured before an
interruption nor on the number of processes, which share out whole units.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

from catekv.evaluation.run.cells import Cell
from catekv.evaluation.run.distributed import Process
from catekv.tasks.core.sample import Sample


@dataclass(frozen=True)
class Unit:
    """Samples of one cell that are measured at once.

    ``one_context``: they share a context, which is compressed once and asked in turn. Otherwise
    they are a left-padded batch, or a single sample.
    """

    cell: Cell
    question: str
    positions: tuple[int, ...]
    one_context: bool = False

    def halves(self) -> list[Unit]:
        """Two units with half of the samples each."""
        middle = (len(self.positions) + 1) // 2
        return [self.part(self.positions[:middle]), self.part(self.positions[middle:])]

    def part(self, positions: Sequence[int]) -> Unit:
        """Some of the samples, measured in the same way."""
        return replace(self, positions=tuple(positions), one_context=self.one_context)

    def limited(self, most: int) -> list[Unit]:
        """Units of at most ``most`` samples."""
        if self.one_context or len(self.positions) <= most:
            return [self]
        return [self.part(piece) for piece in _pieces(self.positions, most)]


def units_of(cell: Cell, question: str, batch_size: int, process: Process) -> list[Unit]:
    """The units of one cell that a process measures, in order.

    Questions of one context go together when they are asked after compression. The others are
    sorted by length where it varies and cut into batches; generated samples, which are nearly
    equally long, are taken in their order.

    Args:
        question: ``agnostic`` or ``aware``.
        batch_size: most samples of a batch.
        process: gets every ``n``-th unit of ``n`` shards.
    """
    left_out = cell.left_out(question)
    positions = [p for p in range(cell.count) if p not in left_out]
    units: list[Unit] = []
    if cell.sizes is not None:
        sizes = cell.sizes
        if question == "agnostic":
            groups = _grouped([p for p in positions if cell.groups[p]], lambda p: cell.groups[p])
            units = [Unit(cell, question, found, True) for found in groups if len(found) > 1]
            together = {position for unit in units for position in unit.positions}
            positions = [p for p in positions if p not in together]
        if batch_size > 1:
            positions.sort(key=lambda p: (sizes[p], p))
    units += [Unit(cell, question, piece) for piece in _pieces(positions, batch_size)]
    number, shards = process.shard
    return units[number::shards]


def alike(unit: Unit) -> list[Unit]:
    """The unit, in parts whose answers end by the same rules (a batch has one set of them)."""
    if unit.one_context or len(unit.positions) == 1:
        return [unit]
    groups = _grouped(unit.positions, lambda position: _ending(unit.cell.sample(position)))
    return [unit.part(positions) for positions in groups]


def _ending(sample: Sample) -> tuple[Hashable, ...]:
    return sample.max_new_tokens, sample.min_new_tokens, sample.stop


def _grouped(positions: Iterable[int], key: Callable[[int], Hashable]) -> list[tuple[int, ...]]:
    """Positions with equal keys together, in order of their first."""
    found: dict[Hashable, list[int]] = {}
    for position in positions:
        found.setdefault(key(position), []).append(position)
    return [tuple(members) for members in found.values()]


def _pieces(positions: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(positions[i : i + size]) for i in range(0, len(positions), size)]
