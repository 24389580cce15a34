"""What a stage is made of."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bench.records import Goal


@dataclass
class Result:
    """What a case found out: lines of the stage's table, goals, and whether it is wrong."""

    rows: list[dict[str, str]] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    wrong: bool = False
    note: str = ""
    data: Any = None


@dataclass(frozen=True)
class Case:
    """One measurement; ``seconds`` is what it takes on a GPU, to skip what cannot be finished."""

    name: str
    run: Callable[[], Result]
    seconds: float = 1.0


@dataclass(frozen=True)
class Stage:
    """What a stage module's ``cases`` gets: real shapes on CUDA, or tiny ones on the CPU."""

    scale: str

    @property
    def tiny(self) -> bool:
        return self.scale == "tiny"

    @property
    def device(self) -> str:
        return "cpu" if self.tiny else "cuda"


@functools.cache
def bandwidth(device: str) -> float:
    """Bytes per second of a copy, measured once per process."""
    import torch

    from catekv.evaluation.efficiency.clock import copy_bandwidth

    return copy_bandwidth(torch.device(device))
