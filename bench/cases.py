"""What the suite consists of: cases with the goals they judge, in the order in which they run.

One table, without torch: what would run, for how long and what it judges is known anywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

OK, WRONG, ERROR, NOT_RUN = "ok", "wrong", "error", "not run"
MET, MISSED, NOT_JUDGED = "met", "missed", "not judged"
#: Exit code of a measuring process whose device is lost.
LOST = 3
#: Seconds that one run may take, and those that the whole suite is to take.
BUDGET, AIM = 560, 360
TIME = "seconds of the whole suite"


@dataclass(frozen=True)
class Goal:
    """A bound for a measured value; ``at_least`` or at most."""

    name: str
    bound: float
    at_least: bool = True

    def judge(self, value: float | None) -> str:
        """``met``, ``missed`` or ``not judged``; what is no number is missed."""
        if value is None:
            return NOT_JUDGED
        met = value >= self.bound if self.at_least else value <= self.bound
        return MET if met and not math.isnan(value) else MISSED

    def describe(self, value: float | None, reason: str = "") -> str:
        sign = ">=" if self.at_least else "<="
        found = reason if value is None else f"{value:.4g}"
        return f"{self.name}: {self.judge(value)}, {found} (goal {sign} {self.bound:g})"


@dataclass
class Result:
    """What a case found out.

    Attributes:
        rows: lines of a table, column -> cell.
        values: goal -> measured value. reasons: goal -> why it could not be judged here.
        wrong: whether a result is wrong, not only slow.
    """

    rows: list[dict[str, str]] = field(default_factory=list)
    values: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    wrong: bool = False
    note: str = ""
    data: Any = None


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        stage: module of :mod:`bench.stages` whose ``run`` is called with ``options``.
        seconds: what it takes on a GPU; it is not started with less time left.
        tokens: of a full cache that it wants to hold, for what is said of the device's memory.
        essential: nothing after it is worth measuring if its result is wrong.
    """

    stage: str
    name: str
    seconds: float
    options: dict[str, Any] = field(default_factory=dict)
    goals: tuple[Goal, ...] = ()
    tokens: int = 0
    essential: bool = False

    @property
    def key(self) -> str:
        return f"{self.stage}: {self.name}"


@dataclass(frozen=True)
class Scale:
    """Real shapes on CUDA, or tiny ones on the CPU."""

    tiny: bool = False

    @property
    def device(self) -> str:
        return "cpu" if self.tiny else "cuda"


def _decode(
    name: str, seconds: float, tokens: int, ratio: float, retention: float, *goals: Goal,
    baselines: tuple[str, ...] = ("kernel", "flex"), store: str = "device",
) -> Case:  # fmt: skip
    options = {
        "tokens_full": tokens, "ratio": ratio, "retention": retention, "baselines": baselines,
        "store": store,
    }  # fmt: skip
    return Case("decode", name, seconds, options, goals, tokens)


def _memory(name: str) -> Goal:
    return Goal(f"{name}: memory off the byte model", 0.01, at_least=False)


def _kernel(name: str, seconds: float, rows: tuple[int, ...], *goals: Goal) -> Case:
    return Case("kernels", name, seconds, {"lengths": rows}, goals)


LONG, SHORT = "500K r 0.4", "500K r 0.3 eta 0.7"
SPEED_UP, SHARE = "speed-up over the fastest full attention", "share of the copy bandwidth"
BITS, OF_IDEAL = "128K r 0.4 int4", "share of the speed-up that bytes alone would give"
RIVAL = "128K all full: kernel over FlashAttention"
REST = "step without attention over reading the weights"
#: Rows of one layer with a ratio of 0.4: three adaptive heads of eight.
_RAGGED = (2080,) * 5

CASES: tuple[Case, ...] = (
    Case("start", "machine", 5.0),
    Case("start", "model", 23.0),
    Case("smoke", "smoke", 15.0, essential=True),
    _decode(
        LONG, 18.0, 500_000, 0.4, 1.0,
        Goal(f"{LONG}: {SPEED_UP}", 1.85), _memory(LONG), Goal(REST, 1.2, at_least=False),
    ),
    _decode(
        SHORT, 14.0, 500_000, 0.3, 0.7, Goal(f"{SHORT}: {SPEED_UP}", 2.6), _memory(SHORT)
    ),
    _decode(
        "128K r 0.4", 14.0, 131_072, 0.4, 1.0, _memory("128K r 0.4"),
        baselines=("kernel", "sdpa", "flex", "flash", "flashinfer"),
    ),
    _decode(
        BITS, 10.0, 131_072, 0.4, 1.0, Goal(f"{BITS}: {OF_IDEAL}", 0.8), baselines=("kernel",),
        store="int4",
    ),
    _decode("8K r 0.4", 9.0, 8_192, 0.4, 1.0, Goal(f"8K r 0.4: {SPEED_UP}", 0.95)),
    _kernel("128K r 0.4", 5.0, (131_072,) * 3 + _RAGGED, Goal(f"128K r 0.4: {SHARE}", 0.85)),
    _kernel("128K r 0.4, batch 8", 5.0, ((131_072,) * 3 + _RAGGED) * 8),
    _kernel("500K r 0.4", 5.0, (500_000,) * 3 + _RAGGED, Goal(f"500K r 0.4: {SHARE}", 0.88)),
    _kernel("128K all full", 5.0, (131_072,) * 8, Goal(RIVAL, 1.0)),
    _kernel("40K r 0.3 eta 0.7, batch 64", 5.0, ((11_264,) * 2 + (2_048,) * 6) * 64),
    Case(
        "throughput", "40K r 0.3 eta 0.7", 35.0, {"ratio": 0.3, "retention": 0.7},
        (Goal(f"40K batches r 0.3 eta 0.7: {SPEED_UP}", 3.9),),
    ),
    Case(
        "prefill", "128K", 30.0, {"length": 131_072},
        (
            Goal("prefill 128K: peak off the plan", 0.05, at_least=False),
            Goal("prefill 128K: scoring and packing over the whole", 0.03, at_least=False),
        ),
    ),
    Case("correctness", "pytest -m gpu", 65.0),
    Case("options", "graph against eager at 8K", 25.0, {"what": "graph"}),
    Case("options", "launch options of d128", 40.0, {"what": "sweep"}),
)  # fmt: skip
STAGES = tuple(dict.fromkeys(case.stage for case in CASES))
#: Judged when every case has run.
WHOLE = Goal(TIME, AIM, at_least=False)

_GIB = 2**30
#: Llama-3-8B in half precision: bytes of the weights, and of keys and values of one token.
WEIGHTS, PER_TOKEN = 8_030_261_248 * 2, 2 * 32 * 8 * 128 * 2
#: Share of a device's memory that weights and caches can take.
_USABLE = 0.95


def remark(case: Case, memory_gib: float) -> str:
    """What a device of this size changes about a case, or nothing."""
    needed = WEIGHTS + case.tokens * PER_TOKEN
    if not case.tokens or needed <= _USABLE * memory_gib * _GIB:
        return ""
    return (
        f"full attention needs {needed / _GIB:.0f} GiB: layers share memory here; "
        "an H200 (139 GiB) holds it whole"
    )


def plan_text(cases: tuple[Case, ...], memory_gib: float) -> str:
    """What would run on a GPU of this size."""
    lines = [f"On a GPU with {memory_gib:g} GiB, in this order:"]
    for case in cases:
        lines.append(f"{case.seconds:5.0f} s  {case.key}")
        lines += [f"         {goal.describe(None)}".replace(": not judged, ", " ")
                  for goal in case.goals]  # fmt: skip
        if said := remark(case, memory_gib):
            lines.append(f"         {said}")
    total = sum(case.seconds for case in cases)
    return "\n".join([*lines, f"{total:5.0f} s  together (budget {BUDGET}, aim {AIM})"])
