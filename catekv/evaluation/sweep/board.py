"""The line that shows how far a sweep on Ray is."""

from __future__ import annotations

import sys
import time
from typing import Any

from catekv.evaluation.sweep.jobs import Job
from catekv.evaluation.sweep.state import FAILED, FINISHED, RUNNING, SweepState, count_records

#: Seconds between two lines of a log.
_LOG_SECONDS = 60.0


class Board:
    """Jobs done, failed and running, and the time that is left.

    The time is estimated from the prompt tokens behind the records that came since the start: a
    record of a long prompt takes longer.

    Args:
        quiet: a plain line now and then, for logs, instead of a bar.
    """

    def __init__(self, state: SweepState, quiet: bool) -> None:
        self.state = state
        self.quiet = quiet
        self._bar: Any = None
        self._records = {name: count_records(state.path(name)) for name in state.jobs}
        self._last = time.monotonic()

    def __enter__(self) -> Board:
        if not self.quiet:
            from tqdm import tqdm

            jobs = self.state.jobs.values()
            self._bar = tqdm(
                total=sum(job.tokens * job.measurements for job in jobs),
                initial=self._weight(),
                bar_format="{percentage:3.0f}% |{bar}| {elapsed}, about {remaining} left, {desc}",
                file=sys.stderr,
                dynamic_ncols=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, running: dict[str, int]) -> dict[str, int]:
        """Look at the records of the jobs at work; returns the number of records per job."""
        for name, entry in self.state.entries.items():
            if name in running or entry.state == FINISHED:
                self._records[name] = count_records(self.state.path(name))
        text = self.line()
        if self._bar is not None:
            self._bar.set_description_str(text, refresh=False)
            self._bar.n = self._weight()
            self._bar.refresh()
        elif time.monotonic() - self._last >= _LOG_SECONDS:
            self._last = time.monotonic()
            print(text, file=sys.stderr, flush=True)
        return dict(self._records)

    def line(self) -> str:
        """``3 of 8 jobs done, 0 failed, 2 running, 120 records``."""
        state = self.state
        return (
            f"{state.count(FINISHED)} of {len(state.jobs)} jobs done, {state.count(FAILED)} "
            f"failed, {state.count(RUNNING)} running, {sum(self._records.values())} records"
        )

    def _weight(self) -> int:
        def of(job: Job) -> int:
            if self.state.entries[job.name].state == FINISHED:
                return job.measurements
            return min(job.measurements, self._records[job.name])

        return sum(job.tokens * of(job) for job in self.state.jobs.values())
