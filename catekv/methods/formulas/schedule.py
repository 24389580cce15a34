"""When a cache that grows while decoding is cut back: the rules of the published systems."""

from __future__ import annotations

from dataclasses import dataclass, replace

#: ``counter`` (kvpress), ``multiple`` (Random Attention), ``position`` (R-KV), ``slack``
#: (TriAttention)
RULES = ("counter", "multiple", "position", "slack")


@dataclass(frozen=True)
class Clock:
    """What the rules ask of one sequence.

    Attributes:
        length: entries that a head with the mean budget holds.
        seen: tokens so far, whatever became of them; the next token's position.
        since: tokens since the last event.
    """

    length: int
    seen: int
    since: int = 0

    def after(self, tokens: int) -> Clock:
        """Once ``tokens`` more have come."""
        return Clock(self.length + tokens, self.seen + tokens, self.since + tokens)


@dataclass(frozen=True)
class Schedule:
    """Cut to ``target`` entries, as ``rule`` and ``every`` say.

    - ``counter``: ``every`` tokens after the last event;
    - ``multiple``: above the target, when the length is a multiple of ``every``;
    - ``position``: at the target or above, when the position of the newest token is one;
    - ``slack``: ``every`` entries above the target.

    Several tokens that come at once count as if the last of them had come at the first moment that
    the rule names among them.
    """

    rule: str
    target: int
    every: int

    def due(self, clock: Clock, new: int = 1) -> bool:
        """Whether an event follows the newest ``new`` tokens, which the clock has counted."""
        if self.rule == "counter":
            return clock.since >= self.every
        if self.rule == "slack":
            return clock.length >= self.target + self.every
        if self.rule == "multiple":
            return clock.length > self.target and self._passed(clock.length, new)
        return clock.length >= self.target and self._passed(clock.seen - 1, new)

    def _passed(self, count: int, new: int) -> bool:
        return count // self.every > (count - new) // self.every

    def after_event(self, clock: Clock) -> Clock:
        return replace(clock, length=min(clock.length, self.target), since=0)
