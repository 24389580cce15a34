"""How far a run is: a bar on a terminal, or plain lines for a log."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType
from typing import IO, Any

#: scores shown at once; a line is read at a glance
_SHOWN_SCORES = 6
#: a log gets a line after this many seconds, after every tenth of the run, and at its end
_LOG_SECONDS = 60.0
_LOG_SHARE = 0.1

#: a run that goes on longer than this is foretold
LONG_SECONDS = 60.0

BAR, LINES, NONE = "bar", "lines", "none"


def foretold(seconds: float, sample: str, shorter: str) -> str:
    """How long a run will take, from its first sample, and which options shorten it."""
    minutes = max(1, math.ceil(seconds / 60))
    long = f"{minutes} minute{'s' if minutes > 1 else ''}"
    if minutes > 120:
        long = f"{minutes / 60:.1f} hours"
    return f"about {long} on this machine, after the first sample ({sample}); shorter: {shorter}"


class Progress:
    """Running scores, tokens per second and the time that is left, on stderr.

    Args:
        total: samples to measure, each under every question mode.
        kind: ``bar``, ``lines`` (for logs: no control characters) or ``none``.
        work: of all samples together, in units of :meth:`advance` (default: the samples).
        shorter: which options shorten the run, said with how long it will take once the first
            sample tells; "": nothing is said.

    Tokens are those that the model read and wrote since the start.
    """

    def __init__(
        self,
        total: int,
        kind: str = BAR,
        stream: IO[str] | None = None,
        *,
        work: float | None = None,
        shorter: str = "",
    ) -> None:
        self.total = total
        self.work_left = float(total) if work is None else work
        self._shorter = "" if kind == NONE else shorter
        self.kind = kind
        self.stream = sys.stderr if stream is None else stream
        self.done = 0
        self.measured = 0
        self.tokens = 0
        self._scores: dict[str, list[float]] = {}
        self._bar: Any = None
        self._start = self._last = time.monotonic()
        self._last_done = 0

    def __enter__(self) -> Progress:
        if self.kind == BAR:
            from tqdm import tqdm

            self._bar = tqdm(total=self.total, unit="sample", file=self.stream, dynamic_ncols=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def score(self, label: str, value: float) -> None:
        """Take a score in [0, 1] into a column's mean."""
        found = self._scores.setdefault(label, [0.0, 0])
        found[0] += value
        found[1] += 1

    def advance(
        self, task: str, samples: int, measured: int = 0, work: float | None = None
    ) -> None:
        """Count samples that are done; ``measured`` of them not before this run."""
        work = samples if work is None else work
        self.work_left -= work
        if measured and self._shorter:
            self._foretell(samples, work)
        self.done += samples
        self.measured += measured
        if self._bar is not None:
            self._bar.set_description_str(task, refresh=False)
            self._bar.set_postfix_str(", ".join(self._numbers()), refresh=False)
            self._bar.update(samples)
        elif self.kind == LINES:
            self._log(task)

    def _foretell(self, samples: int, work: float) -> None:
        """Say once how long a long run will take, from what its first samples took."""
        taken = time.monotonic() - self._start
        left = taken / work * self.work_left
        if left >= LONG_SECONDS:
            line = foretold(taken + left, f"{taken / samples:.1f} s", self._shorter)
            if self._bar is None:
                print(line, file=self.stream, flush=True)
            else:
                self._bar.write(line, file=self.stream)
        self._shorter = ""

    def _log(self, task: str) -> None:
        now = time.monotonic()
        step = max(1, round(_LOG_SHARE * self.total))
        due = self.done - self._last_done >= step or now - self._last >= _LOG_SECONDS
        if not due and self.done < self.total:
            return
        self._last, self._last_done = now, self.done
        parts = [f"{self.done}/{self.total} samples", task, *self._numbers()]
        if self.measured and self.done < self.total:
            left = (now - self._start) / self.measured * (self.total - self.done)
            parts.append(f"{_clock(left)} left")
        else:
            parts.append(f"{_clock(now - self._start)} taken")
        print(", ".join(parts), file=self.stream, flush=True)

    def _numbers(self) -> list[str]:
        shown = [
            f"{label} {100 * total / count:.1f}"
            for label, (total, count) in list(self._scores.items())[:_SHOWN_SCORES]
        ]
        seconds = time.monotonic() - self._start
        if self.tokens and seconds > 0:
            shown.append(f"{self.tokens / seconds:.0f} tokens/s")
        return shown


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
