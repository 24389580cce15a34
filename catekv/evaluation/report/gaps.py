"""Which samples a method lacks that the means beside its own are over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from catekv.evaluation.records.record import Record
from catekv.evaluation.report.validity_section import is_check

#: Behind a number that is over other samples than those beside it.
MARK = "*"
NOTE = (
    f"{MARK} not over the same samples as the numbers beside it: some failed or were not measured; "
    "not comparable."
)


def scores_of(records: Sequence[Record], name: str) -> dict[int, float]:
    """Score per sample index, without failed samples."""
    found = {}
    for record in sorted(records, key=lambda r: r.index):
        value = getattr(record, name)
        if record.error is None and value is not None:
            found[record.index] = float(value)
    return found


class Gaps:
    """The samples of one task at one length that each method has a score of.

    Args:
        columns: records per method. methods: of the manifest; its validity checks set no standard.
        full: label of the full cache.
    """

    def __init__(
        self,
        columns: Mapping[str, Sequence[Record]],
        methods: Mapping[str, Any],
        full: str | None,
    ) -> None:
        self.scored = {
            label: frozenset(scores_of(records, "official")) for label, records in columns.items()
        }
        self.full = full
        self.known = frozenset().union(
            *(found for label, found in self.scored.items() if not is_check(methods[label]))
        )

    def missing(self, label: str) -> int:
        """Samples that other methods have and this one has not."""
        return len(self.known - self.scored.get(label, frozenset()))

    def unpaired(self, label: str) -> int:
        """Samples that this method has and the full cache has not."""
        if self.full is None:
            return 0
        own = self.scored.get(label, frozenset())
        return len(own - self.scored.get(self.full, frozenset()))


def of_several(tasks: Sequence[Gaps], label: str) -> dict[str, int]:
    """``tasks`` that a method has scores of, ``missing`` and ``unpaired`` samples in all tasks."""
    return {
        "tasks": sum(bool(task.scored.get(label)) for task in tasks),
        "missing": sum(task.missing(label) for task in tasks),
        "unpaired": sum(task.unpaired(label) for task in tasks),
    }
