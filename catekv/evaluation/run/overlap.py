"""Contexts that two sample sets share are refused."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from catekv.errors import UserError
from catekv.methods.head_mask import STATISTICS_FILE, load_statistics
from catekv.tasks.core.sample import Sample


def context_hash(sample: Sample) -> str:
    """Identity of a sample's context: 16 hexadecimal digits, blind to white space at its ends."""
    return hashlib.sha256(sample.context.strip().encode()).hexdigest()[:16]


def refuse_overlap(
    reference: Iterable[str], others: Iterable[Sample], what: str = "the test set"
) -> None:
    """Raise ``UserError`` if a context of ``others`` has its hash in ``reference``.

    A mask that was chosen on test samples measures nothing.
    """
    known = set(reference)
    for sample in others:
        if context_hash(sample) in known:
            raise UserError(
                f"sample {sample.index} of {sample.task} stands in the reference set and in {what};"
                " choose another seed or other files, so that they are disjoint"
            )


def reference_contexts(folder: str | Path) -> set[str]:
    """Hashes of the contexts that a folder of masks was made from; empty if it does not say."""
    path = Path(folder) / STATISTICS_FILE
    if not path.is_file():
        return set()
    return set(load_statistics(path)[1].get("reference_contexts", []))
