"""Names of files made from names of methods and runs."""

from __future__ import annotations

import re


def file_stem(name: str) -> str:
    """A name that every file system and every link takes."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.").lower() or "run"
