"""Numbers on the command line: one parser with a range, so that no value ends in an overflow."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

from catekv.evaluation.options import MOST_SAMPLES, MOST_TOKENS

#: What every library that a number reaches can hold: a signed integer of 64 bits.
LARGEST = 2**63 - 1
#: Processes, batch sizes, layers, heads, repeats: what is counted out one by one.
MOST_PARTS = 2**20


def whole(least: int = -LARGEST, most: int = LARGEST) -> Callable[[str], int]:
    """The ``type`` of an option that takes a whole number from ``least`` to ``most``."""

    def parse(text: str) -> int:
        try:
            # twenty digits hold every number in the range; int() is slow or refuses beyond 4300
            value = int(text) if len(text) <= 24 else None
        except ValueError:
            value = None
        if value is None and not text.strip().lstrip("+-").isdecimal():
            raise argparse.ArgumentTypeError(f"invalid int value: {shown(text)}")
        if value is None or not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"{shown(text)} is out of range; give a whole number from {least} to {most}"
            )
        return value

    return parse


def real(least: float = -math.inf, most: float = math.inf) -> Callable[[str], float]:
    """The ``type`` of an option that takes a finite number from ``least`` to ``most``."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"invalid float value: {shown(text)}") from None
        if not math.isfinite(value) or not least <= value <= most:
            wanted = "a finite number"
            if math.isfinite(least) or math.isfinite(most):
                wanted = f"a number from {least:g} to {most:g}"
            raise argparse.ArgumentTypeError(f"{shown(text)} is out of range; give {wanted}")
        return value

    return parse


#: The ``type`` of what is counted in tokens; of samples, rounds, draws; and of threads.
token_count = whole(1, MOST_TOKENS)
item_count = whole(1, MOST_SAMPLES)
thread_count = whole(1, 1024)


def shown(text: str) -> str:
    """A word for an error message, cut where it is long."""
    return repr(text if len(text) <= 40 else text[:37] + "...")
