"""The embedded model: a small Llama that really retrieves, its language and its training.

``path()`` is where the shipped checkpoint lies; ``python -m experiments.embedded.train`` makes it.
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from catekv.errors import UserError


def clone() -> Path | None:
    """Folder of the repository that this package runs from; None where a wheel was installed."""
    package = _package()
    return None if (package / "shipped").is_dir() else package.parent


def shipped(name: str) -> Path:
    """What comes with the project: ``ckpt/...`` or ``select_headmask/...``; it need not exist.

    In a clone these folders lie beside the package, a wheel has them in it (see ``setup.py``).
    """
    return (clone() or _package() / "shipped") / name


def path() -> Path:
    """Folder of the shipped checkpoint, ``ckpt/embedded``.

    Raises ``UserError`` when the package was copied without that folder.
    """
    folder = shipped("ckpt/embedded")
    if not (folder / "config.json").is_file():
        raise UserError(
            f"no embedded model at {folder}: work in a clone of the repository, install a wheel, "
            "name another model, or train it with 'python -m experiments.embedded.train --output "
            "ckpt/embedded'"
        )
    return folder


def _package() -> Path:
    return Path(str(importlib.resources.files("catekv")))
