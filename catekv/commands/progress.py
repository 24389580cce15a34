"""How far a command is, where it knows no end: one line that counts."""

from __future__ import annotations

import sys
from collections.abc import Callable


def counted() -> Callable[[str], None]:
    """A function to be called with a word after every step: it prints how often that was in
    succession."""
    last, count = "", 0

    def show(what: str) -> None:
        nonlocal last, count
        count = count + 1 if what == last else 1
        last = what
        print(f"\r{what}: {count}   ", end="", file=sys.stderr)

    return show
