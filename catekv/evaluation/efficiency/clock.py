"""Clocks: decode steps back to back, and single kernels on a cold cache."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from catekv import kernels
from catekv.decode import graph as recording
from catekv.decode.generation import synchronize
from catekv.evaluation.efficiency.fill import fill_random_

#: Bytes written between two runs of a kernel so that nothing of its input is in a cache: more than
#: the L2 of any GPU, and long enough for the host to queue the next launch meanwhile.
FLUSH_BYTES = {"cuda": 1 << 29, "cpu": 1 << 27}


def step_times(
    step: Callable[[], object], count: int, device: torch.device
) -> tuple[list[float], float]:
    """Seconds of each of ``count`` steps, and wall seconds per step.

    On CUDA the steps are queued behind each other without waiting for any, and the times are those
    between events on the device: what the device was busy with, or waiting for the host.
    """
    synchronize(device)
    start = time.perf_counter()
    if device.type != "cuda":
        times = []
        for _ in range(count):
            clock = time.perf_counter()
            step()
            times.append(time.perf_counter() - clock)
        return times, (time.perf_counter() - start) / count
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    with torch.cuda.device(device):
        events[0].record()
        for event in events[1:]:
            step()
            event.record()
    synchronize(device)
    wall = (time.perf_counter() - start) / count
    pairs = itertools.pairwise(events)
    return [before.elapsed_time(after) / 1000 for before, after in pairs], wall


def cold_times(function: Callable[[], Tensor], repeats: int, device: torch.device) -> list[float]:
    """Seconds of each of ``repeats`` runs, with caches flushed before every one.

    On CUDA the function is replayed from a graph where it can be captured, so that the host's time
    for launching it does not count.
    """
    flush = torch.empty(FLUSH_BYTES[_kind(device)], dtype=torch.uint8, device=device)
    function()
    if device.type != "cuda":
        times = []
        for _ in range(repeats):
            flush.fill_(1)
            clock = time.perf_counter()
            function()
            times.append(time.perf_counter() - clock)
        return times
    run, _ = capture(function, device)
    pairs = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(repeats)
    ]
    with torch.cuda.device(device):
        for before, after in pairs:
            flush.fill_(1)
            before.record()
            run()
            after.record()
    synchronize(device)
    return [before.elapsed_time(after) / 1000 for before, after in pairs]


def capture(
    function: Callable[[], Tensor], device: torch.device
) -> tuple[Callable[[], object], str]:
    """A replay of the function from a CUDA graph and ``""``, or itself and the reason why not.

    The function must always work on the same tensors, and must have run once.
    """
    reason = recording.why_not(device)
    if reason is not None:
        return function, reason
    try:
        return recording.record(function, lambda: None, device).replay, ""
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        synchronize(device)
        return function, " ".join(str(error).split())[:200]


def copy_bandwidth(device: torch.device, repeats: int = 7) -> float:
    """Bytes per second of a large copy of random numbers, read and write counted: the median.

    Two ways of copying are tried, the project's kernel and torch's: the better one says what the
    memory can do. What is compared with it is a median over random numbers too; numbers that are
    all alike cost a chip less power, and a best of several flatters the yardstick.
    """
    size = _COPY_BYTES[_kind(device)]
    source = fill_random_(torch.empty(size // 4, dtype=torch.float32, device=device))
    target = torch.empty_like(source)

    def median(copy: Callable[[], object]) -> float:
        copy()
        return statistics.median(step_times(copy, repeats, device)[0])

    fastest = median(lambda: target.copy_(source))
    if device.type == "cuda":
        fastest = min(fastest, median(lambda: kernels.copy(target, source)))
    return 2 * size / fastest


_COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 26}


def _kind(device: torch.device) -> str:
    return "cuda" if device.type == "cuda" else "cpu"
