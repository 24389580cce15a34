"""Random generators that depend on names only: never on order, count, shards or the process."""

from __future__ import annotations

from hashlib import blake2b
from random import Random


def generator(*parts: object) -> Random:
    """A generator seeded by a stable hash of ``parts`` (plain strings and numbers).

    Equal parts give equal streams on every machine and Python version; Python's own ``hash`` is
    salted per process and would not.
    """
    digest = blake2b("\x1f".join(str(part) for part in parts).encode(), digest_size=16).digest()
    return Random(int.from_bytes(digest, "big"))
