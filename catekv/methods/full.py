"""Full attention: keep everything. The reference every other method is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from catekv.methods.registry import register

pass


@register
@dataclass(frozen=True)
class Full(KeepsEverything):
    """Keep every token of every head."""

    name: ClassVar[str] = "full"
    effect: ClassVar[str] = "keeps"
