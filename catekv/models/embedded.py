"""The embedded model: a small Llama that really retrieves, its language and its training.

``path()`` is where the shipped checkpoint lies; ``python -m experiments.embedded.train`` makes it.
"""

from __future__ import annotations

from pathlib import Path

from catekv.errors import UserError


def path() -> Path:
    """Folder of the shipped checkpoint (``ckpt/embedded`` beside the package).

    Raises ``UserError`` when the package was installed without the repository's ``ckpt`` folder.
    """
    folder = Path(__file__).resolve().parents[2] / "ckpt" / "embedded"
    if not (folder / "config.json").is_file():
        raise UserError(
            f"no embedded model at {folder}: work in a clone of the repository, name another "
            "model, or train it with 'python -m experiments.embedded.train --output ckpt/embedded'"
        )
    return folder
