"""Several processes under ``torchrun``: who am I, and the few moments they must meet.

*Data parallel*: process i of n measures the samples i, i + n, i + 2n ... of every task, on a device
of its own; they exchange no tensors, so that the ``gloo`` backend serves CPU and GPU alike.
*Tensor parallel*: the processes share one model and measure the same samples at the same time; the
first writes.

Written on ``torch.distributed`` alone: what accelerate would add is not worth a core dependency.
"""

from __future__ import annotations

import datetime
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from catekv.errors import UserError

DATA, TENSOR = "data", "tensor"
PARALLEL = (DATA, TENSOR)

#: Processes may differ by hours at the end of a run; the default of 30 minutes would end it.
_PATIENCE = datetime.timedelta(days=7)
#: How long a process that is done waits for the others to be done, before it closes connections:
#: the first writes the summary then. One that failed may leave others at hours of work.
_UNTIL_DONE, _AFTER_FAILURE = datetime.timedelta(minutes=10), datetime.timedelta(seconds=5)
#: Seconds that the processes of one machine may take to end.
_UNTIL_ENDED = 60.0
#: Phases of a measurement in which tensor-parallel processes wait for each other.
_TOGETHER = ("prefill", "compress", "generate")

Result = TypeVar("Result")


@dataclass(frozen=True)
class Process:
    """This process among those that ``torchrun`` started; alone without it.

    Attributes:
        rank, world: its number, and how many there are. local_rank: its number on its machine.
        parallel: ``data`` or ``tensor``.
        siblings: numbers that the system gave to the others with the same parent.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    parallel: str = DATA
    siblings: tuple[int, ...] = ()

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def shares_model(self) -> bool:
        """Whether all processes work on the same sample."""
        return self.parallel == TENSOR and self.world > 1

    @property
    def writes(self) -> bool:
        """Whether this process records what it measures."""
        return self.is_first or not self.shares_model

    @property
    def shard(self) -> tuple[int, int]:
        """(number, count) of this process's share of the samples."""
        return (0, 1) if self.shares_model else (self.rank, self.world)

    def device(self, device: str) -> str:
        """``cuda`` and ``auto`` become this process's own GPU when there are several processes."""
        if self.world == 1 or device not in ("cuda", "auto"):
            return device
        import torch

        count = torch.cuda.device_count()
        if device == "auto" and not count:
            return device
        if self.local_rank >= count:
            raise UserError(
                f"process {self.local_rank} finds only {count} CUDA devices; start torchrun with "
                f"--nproc_per_node {max(count, 1)} or use --device cpu"
            )
        return f"cuda:{self.local_rank}"

    def barrier(self) -> None:
        """Wait for the other processes."""
        if self.world > 1:
            # objects, unlike the library's own barrier, go between hosts whatever the devices are
            self._gather(None)

    def first_decides(self, action: Callable[[], Result]) -> Result | None:
        """Run ``action`` on the first process; its ``UserError`` is raised on all of them.

        The first gets the result, the others None.
        """
        if self.world == 1:
            return action()
        result: Result | None = None
        failure: str | None = None
        if self.is_first:
            try:
                result = action()
            except UserError as error:
                failure = str(error)
        failure = self._broadcast(failure)
        if failure is not None:
            raise UserError(failure)
        return result

    def alike(self, value: Result) -> Result:
        """The first process's value on all that share a model; else everybody's own.

        For what each finds by itself (free memory, records on disk) and all must agree on.
        """
        return self._broadcast(value) if self.shares_model else value

    def total(self, value: int) -> int:
        """Sum of ``value`` over all processes, each sample counted once."""
        return sum(self._gather(value)) if self.world > 1 and not self.shares_model else value

    def outlive_siblings(self) -> None:
        """Wait until the other processes of this machine have ended, for a minute at most.

        ``torchrun`` ends all processes as soon as one exits with a code other than 0, even those
        that are about to end by themselves: the one that brings such a code goes last.
        """
        deadline = time.monotonic() + _UNTIL_ENDED
        for number in self.siblings:
            with suppress(ProcessLookupError):
                while time.monotonic() < deadline:
                    os.kill(number, 0)  # signal 0 only asks whether the process is there
                    time.sleep(0.02)

    def must_end(self, error: Exception, phase: str) -> None:
        """Raise what ends this process, if it cannot go on alone after an error in a sample.

        Processes that share a model wait for each other within a forward: one that failed there
        while the others did not would wait for ever, and they for it. Wrong input is seen by all
        of them alike, and so is what fails between the forwards.

        Raises:
            UserError: with the reason.
        """
        if self.shares_model and phase in _TOGETHER and not isinstance(error, UserError):
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(
                f"process {self.rank} of {self.world} that share the model failed ({reason}); the "
                "records are kept and the same command goes on, with more processes if memory "
                "lacked"
            ) from error

    def _broadcast(self, value: Any) -> Any:
        import torch.distributed

        box = [value]
        with _others_alive():
            torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def _gather(self, value: Any) -> list[Any]:
        import torch.distributed

        values: list[Any] = [None] * self.world
        with _others_alive():
            torch.distributed.all_gather_object(values, value)
        return values

    def _with_siblings(self) -> Process:
        """This process, knowing the others that the same parent started on this machine."""
        parent = (platform.node(), os.getppid())
        others = self._gather((parent, os.getpid()))
        siblings = [number for of, number in others if of == parent and number != os.getpid()]
        return replace(self, siblings=tuple(siblings))


@contextmanager
def _others_alive() -> Iterator[None]:
    """``UserError`` where another process ended while this one waits for it."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            "another process of this run ended before its end (its own message says why); the "
            "records are kept, the same command goes on with them"
        ) from error


@contextmanager
def process_group(parallel: str = DATA) -> Iterator[Process]:
    """The processes that ``torchrun`` started, connected while the context lasts.

    They leave it together: one that closes its connections while others still use theirs can end
    them, or itself.

    Args:
        parallel: ``data`` or ``tensor``.

    Raises:
        UserError: another word, or ``tensor`` without several processes.
    """
    if parallel not in PARALLEL:
        raise UserError(f"unknown parallelism {parallel!r}; use {' or '.join(PARALLEL)}")
    world = _number("WORLD_SIZE", 1)
    if world <= 1:
        if parallel == TENSOR:
            raise UserError(
                "--parallel tensor shares a model among processes; start it with torchrun "
                "--nproc_per_node N"
            )
        yield Process()
        return
    import torch
    from torch.distributed.rendezvous import rendezvous

    from catekv.models.sharding import models_apart

    local_rank = _number("LOCAL_RANK", 0)
    backend = "gloo"
    if parallel == TENSOR and torch.cuda.is_available():
        # objects travel between hosts, tensors between GPUs
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(local_rank)
    try:
        store, rank, world = next(rendezvous("env://", timeout=_PATIENCE))
        torch.distributed.init_process_group(
            backend, store=store, rank=rank, world_size=world, timeout=_PATIENCE
        )
    except (ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or ["no answer"])[0]
        raise UserError(
            f"WORLD_SIZE is {world} but the processes cannot connect ({reason}); start them with "
            "torchrun, or unset WORLD_SIZE"
        ) from error
    patience = _AFTER_FAILURE
    try:
        with nullcontext() if parallel == TENSOR else models_apart():
            yield Process(rank, world, local_rank, parallel)._with_siblings()
        patience = _UNTIL_DONE
    finally:
        _leave_together(store, rank, world, patience)


def _leave_together(store: Any, rank: int, world: int, patience: datetime.timedelta) -> None:
    """Close the connections as soon as all processes are done with them.

    They meet at the store, not by a message to each other: after a failure some may still wait for
    a message of another kind. Who has ended, or works on for longer than ``patience``, is left.
    """
    import torch.distributed

    with suppress(RuntimeError):  # the patience is at its end, or the process with the store is
        store.set(f"done/{rank}", "")
        store.wait([f"done/{other}" for other in range(world)], patience)
    torch.distributed.destroy_process_group()


def _number(variable: str, default: int) -> int:
    """A whole number from the environment."""
    text = os.environ.get(variable, str(default))
    if not text.isdecimal():
        raise UserError(f"{variable} is {text!r}; it is torchrun's and a whole number, unset it")
    return int(text)
