"""One check of the doctor, and all that it found."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Check:
    """Something that was looked at: what, whether it is well, and why (not)."""

    name: str
    fits: bool
    reason: str


@dataclass
class Findings:
    """Facts per heading, and what was checked."""

    facts: dict[str, dict[str, str]] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        return all(check.fits for check in self.checks)
