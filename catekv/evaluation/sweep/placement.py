"""Where the jobs of a sweep run: how much of which device each one needs, as ``catekv plan`` says.

A job runs on a part of a GPU, on one, or on several that share the model (tensor parallelism); on
machines without GPUs on cores, with the memory it needs set aside. What fits nowhere is refused
before anything starts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from catekv.errors import NeedsAllHeadsError, UserError
from catekv.evaluation.sweep.grid import Placement
from catekv.evaluation.sweep.jobs import Job
from catekv.methods import Method
from catekv.models.compat import attention_sizes, shares_kv_heads, text_config
from catekv.prefill.capacity import RESERVE_SINGLE, Workload
from catekv.prefill.devices import GIB
from catekv.prefill.sizes import ModelSizes

#: More jobs than this on one GPU wait for each other.
MOST_PER_GPU = 8
#: New tokens that room is made for where a job does not say.
ROOM = 512


@dataclass(frozen=True)
class Machine:
    """A machine that runs jobs.

    Attributes:
        name: for people. kind: ``cuda`` or ``cpu``.
        memory_bytes: of each GPU, or of the machine. gpus, cpus: how many.
        node: Ray's id of it, "" without Ray.
    """

    name: str
    kind: str
    memory_bytes: int
    cpus: int
    gpus: int = 0
    node: str = ""


@dataclass(frozen=True)
class Place:
    """What one job gets.

    Attributes:
        kind: ``cuda`` or ``cpu``. cpus: cores. gpus: a share of one, or a whole number.
        memory_bytes: what it may take: of each of its GPUs, or of the machine's memory.
        needed_bytes: what it needs by the plan, per device. prefill: ``shared`` or ``separate``.
        nodes: Ray's ids of the machines it fits; empty: all of them.
    """

    kind: str
    cpus: int
    gpus: float
    memory_bytes: int
    needed_bytes: int
    prefill: str
    nodes: tuple[str, ...] = ()

    @property
    def processes(self) -> int:
        """Processes that share the model."""
        return max(1, int(self.gpus)) if self.kind == "cuda" else 1

    def __str__(self) -> str:
        need = f"{self.needed_bytes / GIB:.2f} GiB"
        if self.kind == "cpu":
            return f"{self.cpus} core{'s' if self.cpus > 1 else ''}, {need}"
        if self.gpus < 1:
            return f"{self.gpus:.2f} GPU, {need}"
        return f"{self.gpus:g} GPU{'s' if self.gpus > 1 else ''}, {need}" + (
            " each" if self.gpus > 1 else ""
        )


def place_all(
    jobs: Sequence[Job], machines: Sequence[Machine], options: Placement
) -> dict[str, Place]:
    """A place for every job, by its name.

    Raises:
        UserError: jobs that fit no machine, the first of them with its numbers.
    """
    wanted = {job.request.device for job in jobs}
    on_gpus = [machine for machine in machines if machine.kind == "cuda"]
    if "cuda" in wanted and not on_gpus:
        raise UserError("the grid asks for device cuda, and no machine has a CUDA device")
    usable = on_gpus if wanted != {"cpu"} and on_gpus else _without_gpus(machines)
    cores = max(machine.cpus for machine in usable)
    if (options.cpus or 0) > cores:
        raise UserError(
            f"placement.cpus is {options.cpus} and the largest machine has {cores} cores; lower it"
        )
    places: dict[str, Place] = {}
    refused: list[str] = []
    for job in jobs:
        place = _on_gpus(job, usable, options) if usable is on_gpus else None
        if usable is not on_gpus:
            place = _on_cpus(job, usable, options, len(jobs))
        if place is None:
            refused.append(_refusal(job, usable))
        else:
            places[job.name] = place
    if refused:
        more = f"; {len(refused) - 1} more jobs do not fit either" if len(refused) > 1 else ""
        raise UserError(
            f"{refused[0]}; leave it out with exclude, shorten it, or use larger devices{more}"
        )
    return places


def _without_gpus(machines: Sequence[Machine]) -> list[Machine]:
    found = [machine for machine in machines if machine.kind == "cpu"]
    if not found:
        raise UserError(
            "the grid asks for device cpu and all machines have GPUs, whose memory is planned; "
            "leave device out, or hide the GPUs with CUDA_VISIBLE_DEVICES=''"
        )
    return found


def needed_bytes(job: Job, kind: str, prefill: str, processes: int = 1) -> float:
    """What one process of a job holds at most.

    Args:
        kind: ``cuda`` or ``cpu``. prefill: ``separate`` (one method at a time, layer by layer) or
            ``shared`` (the dense prompt stays while a compressed copy lives beside it).
        processes: that share the model.
    """
    return max(_of_rank(job, kind, prefill, processes, rank) for rank in range(processes))


def _of_rank(job: Job, kind: str, prefill: str, processes: int, rank: int) -> float:
    sizes, heads = _shared_sizes(job, kind, processes, rank)
    new_tokens = job.request.max_new_tokens or ROOM
    batch = job.request.batch_size

    def work(method: Method | None) -> Workload:
        return Workload(sizes, method, job.request.chunk_size, new_tokens, kind)

    dense = work(None)
    most = 0.0
    for spec in job.specs:
        method: Method | None = spec.for_prompt(job.tokens, job.sizes(kind).shape)
        assert method is not None
        if heads is not None:
            try:
                method = method.for_heads(heads)
            except NeedsAllHeadsError:
                # by the prompt's content any process may have to keep everything
                method = None
        if prefill == "separate":
            most = max(most, work(method).needed_bytes(job.tokens, batch))
        else:
            beside = work(method).cache_bytes(job.tokens, batch)
            most = max(most, dense.needed_bytes(job.tokens, batch) + beside)
    if job.request.joint_decode:
        most += len(job.specs) * dense.cache_bytes(job.tokens, batch)
    return most


def _shared_sizes(
    job: Job, kind: str, processes: int, rank: int
) -> tuple[ModelSizes, slice | None]:
    """Sizes of the part of the model that a process holds, and its KV heads (None: all)."""
    sizes = job.sizes(kind)
    if processes == 1:
        return sizes, None
    whole = sizes.embedding_parameters
    part = dataclasses.replace(
        sizes,
        # the table of embeddings is counted as a copy per process: not every plan splits it
        parameters=whole + (sizes.parameters - whole) // processes,
        intermediate_size=sizes.intermediate_size // processes,
    )
    if not shares_kv_heads(job.config):
        return part, None
    own = sizes.kv_heads // processes
    part = dataclasses.replace(part, kv_heads=own, query_heads=sizes.query_heads // processes)
    return part, slice(rank * own, (rank + 1) * own)


def _modes(job: Job) -> tuple[str, ...]:
    asked = job.request.prefill
    if len(job.specs) == 1 and asked == "auto":
        return ("separate",)
    return ("shared", "separate") if asked == "auto" else (asked,)


def _on_gpus(job: Job, machines: Sequence[Machine], options: Placement) -> Place | None:
    largest = max(machine.gpus for machine in machines)
    for processes in _process_counts(job, largest):
        for prefill in _modes(job):
            need = needed_bytes(job, "cuda", prefill, processes)
            fits = [
                machine
                for machine in machines
                if machine.gpus >= processes and need + RESERVE_SINGLE <= machine.memory_bytes
            ]
            if not fits:
                continue
            memory = min(machine.memory_bytes for machine in fits)
            parts = 1
            if options.share and processes == 1:
                parts = max(1, min(MOST_PER_GPU, int(memory // (need + RESERVE_SINGLE))))
            everywhere = len(fits) == len(machines)
            return Place(
                kind="cuda",
                cpus=options.cpus or processes,
                # rounded down, so that as many jobs as were counted share one GPU
                gpus=processes if parts == 1 else int(10_000 / parts) / 10_000,
                memory_bytes=int(memory // parts),
                needed_bytes=round(need),
                prefill=prefill,
                nodes=() if everywhere else tuple(machine.node for machine in fits),
            )
    return None


def _process_counts(job: Job, largest: int) -> list[int]:
    """Numbers of GPUs that can hold a model together, fewest first."""
    config = text_config(job.config)
    if not getattr(config, "base_model_tp_plan", None):
        return [1]
    heads = attention_sizes(config).kv_heads
    shared = shares_kv_heads(job.config)
    counts = [1]
    while counts[-1] * 2 <= largest and (not shared or heads % (counts[-1] * 2) == 0):
        counts.append(counts[-1] * 2)
    return counts


def _on_cpus(job: Job, machines: Sequence[Machine], options: Placement, jobs: int) -> Place | None:
    for prefill in _modes(job):
        need = needed_bytes(job, "cpu", prefill)
        taken = need + RESERVE_SINGLE
        fits = [machine for machine in machines if taken <= machine.memory_bytes]
        if options.cpus:
            fits = [machine for machine in fits if machine.cpus >= options.cpus]
        if not fits:
            continue
        cores = sum(machine.cpus for machine in machines)
        share = max(1, min(cores // jobs, min(machine.cpus for machine in fits)))
        everywhere = len(fits) == len(machines)
        return Place(
            kind="cpu",
            cpus=options.cpus or share,
            gpus=0,
            memory_bytes=int(taken),
            needed_bytes=round(need),
            prefill=prefill,
            nodes=() if everywhere else tuple(machine.node for machine in fits),
        )
    return None


def _refusal(job: Job, machines: Sequence[Machine]) -> str:
    kind = machines[0].kind
    prefill = _modes(job)[-1]
    most = max(machines, key=lambda machine: machine.memory_bytes)
    largest = max(machine.gpus for machine in machines)
    need = needed_bytes(job, kind, prefill)
    text = (
        f"job {job.name} needs {need / GIB:.2f} GiB and {RESERVE_SINGLE / GIB:.0f} GiB beside it "
        f"({job.tokens} tokens, {len(job.specs)} methods, {prefill} prefills), and the largest "
        f"{'GPU' if kind == 'cuda' else 'machine'} has {most.memory_bytes / GIB:.2f} GiB"
    )
    count = _process_counts(job, largest)[-1] if kind == "cuda" else 1
    if count > 1:
        each = needed_bytes(job, kind, prefill, count)
        text += f"; shared by {count} GPUs each of them needs {each / GIB:.2f} GiB"
    return text
