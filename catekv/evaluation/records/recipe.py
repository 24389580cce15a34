"""What decided the numbers in a folder, and whether a command may add to them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from catekv.errors import UserError


def refuse_other(
    folder: Path,
    held: Mapping[str, Any],
    wanted: Mapping[str, Any],
    remedy: str,
    what: str = "results",
) -> None:
    """Raise ``UserError`` with the names of all that differs, before and now.

    Args:
        folder: named in the error. held: as read from its file.
        wanted: of this command; what JSON cannot say is compared as text.
        what: the folder holds, in words.
    """
    wanted = json.loads(json.dumps(wanted, default=str))
    different = [
        f"{name} ({_short(held.get(name))}, now {_short(wanted.get(name))})"
        for name in sorted({*held, *wanted})
        if held.get(name) != wanted.get(name)
    ]
    if different:
        raise UserError(
            f"{folder} holds {what} of another configuration, different: {', '.join(different)}; "
            f"{remedy}"
        )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
