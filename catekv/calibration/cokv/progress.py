"""A progress bar that says how far apart the two runs are, and about how long they will need."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType

from tqdm import tqdm

from catekv.calibration.cokv.course import Course
from catekv.calibration.cokv.journal import Plan


def draws_needed(course: Course) -> float:
    """Draws of every slice and run after which the runs should agree: their difference falls with
    the square root of the draws. NaN before it is known."""
    if not course.agreements:
        return math.nan
    last = course.agreements[-1]
    return course.draws * (last.error / last.tolerance) ** 2


def remaining_seconds(course: Course, seconds_per_draw: float, most: int) -> float:
    """Time until the runs agree or ``most`` draws of every slice and run are used; NaN before it
    can be told."""
    if not course.draws:
        return math.nan
    needed = draws_needed(course)
    until = most if math.isnan(needed) else min(most, needed)
    return max(0.0, until - course.draws) * seconds_per_draw


class Progress:
    """A bar of blocks times samples on stderr."""

    def __init__(self, wanted: bool, plan: Plan, blocks: int):
        self.plan, self.blocks = plan, blocks
        self._bar = tqdm(
            total=blocks * plan.samples,
            desc=f"draws 0/{blocks * plan.per_block}",
            disable=not wanted,
            file=sys.stderr,
            bar_format="{desc} |{bar:20}| {elapsed}{postfix}",
        )
        self._clock = time.perf_counter()
        self._first = 0

    def start(self, course: Course) -> None:
        """Begin with the draws that an earlier run left."""
        self._first = course.draws
        self._clock = time.perf_counter()
        self.check(course)

    def advance(self) -> None:
        self._bar.update(1)

    def check(self, course: Course) -> None:
        """Show the state after a block."""
        self._bar.n = course.blocks * self.plan.samples
        self._bar.set_description_str(
            f"draws {course.draws}/{self.blocks * self.plan.per_block}", refresh=False
        )
        self._bar.set_postfix_str(self.describe(course))

    def describe(self, course: Course) -> str:
        """The difference of the runs, when they stop, and the time left."""
        if not course.agreements:
            return "no check yet"
        last = course.agreements[-1]
        if math.isnan(last.error):
            return f"not every head drawn yet, stop below {last.tolerance:.3g}"
        text = f"MAE {last.error:.3g}, stop below {last.tolerance:.3g}"
        new = course.draws - self._first
        if last.reached or not new:
            return text
        each = (time.perf_counter() - self._clock) / new
        left = remaining_seconds(course, each, self.blocks * self.plan.per_block)
        return f"{text}, about {tqdm.format_interval(left)} left"

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
