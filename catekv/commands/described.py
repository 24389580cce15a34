"""What a folder says of itself, for the ``show`` of a command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from catekv.errors import UserError

T = TypeVar("T")


def described(describe: Callable[[T], str], found: T, folder: Path, what: str, again: str) -> str:
    """The text of ``describe`` about what was read from ``folder``.

    Args:
        what: was read, in the plural. again: the command that makes it anew.

    Raises:
        UserError: a damaged recipe: values that are missing, or of another kind.
    """
    try:
        return describe(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{folder} does not say how its {what} were made; train them again with `{again}`"
        ) from error
