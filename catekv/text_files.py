"""Reading text that users wrote, whatever editor they wrote it with."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

from catekv.errors import UserError

#: what begins every file of spreadsheets and some editors, and is no part of the text
BYTE_ORDER_MARK = "\ufeff"
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)


def read_text(path: str | os.PathLike[str], *, newline: str | None = None) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Args:
        newline: as in ``open``: None turns line ends into ``\\n``, ``""`` leaves them.

    Raises:
        UserError: another encoding.
        OSError: the file cannot be read.
    """
    file = Path(path)
    try:
        with file.open(encoding="utf-8-sig", newline=newline) as stream:
            text = stream.read()
    except UnicodeDecodeError as error:
        with file.open("rb") as raw:
            begins = raw.read(4)
        wide = begins.startswith(_WIDE) or b"\0" in begins
        found = "UTF-16 or UTF-32" if wide else "Latin-1 or no text at all"
        raise UserError(
            f"cannot read {file}: it is not UTF-8 but maybe {found} (byte "
            f"{error.object[error.start]:#04x}); save it as UTF-8"
        ) from error
    if "\0" in text[:4]:
        raise UserError(
            f"cannot read {file}: it is not UTF-8 but maybe UTF-16 or UTF-32; save it as UTF-8"
        )
    return text
