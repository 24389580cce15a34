"""Options of MRCR."""

from __future__ import annotations

from dataclasses import dataclass

from catekv.tasks.rows.sources import DataOptions


@dataclass(frozen=True, kw_only=True)
class ConversationOptions(DataOptions):
    """Options of drawn conversations besides :class:`DataOptions`.

    Attributes:
        short: texts of 10 to 20 words instead of 60 to 200, for small models.
    """

    short: bool = False
