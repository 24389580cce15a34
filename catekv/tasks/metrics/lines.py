"""Answers of several lines, each of which follows from the ones before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Lines(NamedTuple):
    """Share of the expected lines that lead the output rightly, and whether it is just them."""

    prefix: float
    exact: bool


def rate(output: str, expected: Sequence[str]) -> Lines:
    """Compare line by line; blank lines and white space around lines do not count."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    wanted = [line.strip() for line in expected if line.strip()]
    leading = 0
    for line, right in zip(lines, wanted, strict=False):
        if line != right:
            break
        leading += 1
    return Lines(leading / len(wanted) if wanted else 0.0, bool(wanted) and lines == wanted)
