"""One writer at a time: locks on files and folders that end with the process, however it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import lock_descriptor

from catekv.errors import UserError


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made if absent, for one command.

    Raises:
        UserError: another command holds it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(
            f"cannot write results to {folder}: {error.strerror}; choose another folder with "
            "--output or change its permissions"
        ) from error
    try:
        lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def lock(descriptor: int, folder: Path) -> None:
    """Lock an open file or folder until it is closed.

    Args:
        folder: named in the error.

    Raises:
        UserError: somebody else has the lock.
    """
    try:
        held = lock_descriptor(descriptor, blocking=False)
    except OSError:
        # some network file systems know no locks; the records stay valid, only unguarded
        return
    if not held:
        raise UserError(
            f"another run is writing to {folder}; wait for it or choose another output folder"
        )
