"""Bytes on the device: peaks, what is free, and what running out of them does to a row."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

import torch

from catekv.errors import UserError
from catekv.evaluation.efficiency.measurement import ABSENT, FAILED, TOO_LARGE, Measurement
from catekv.evaluation.records import environment
from catekv.model import CateKVModel
from catekv.prefill.capacity import RESERVE_BATCH, ran_out_of_memory
from catekv.prefill.sizes import MemoryModel

#: Kept free beside weights and caches: workspaces, logits, graphs, what the allocator cannot reuse.
RESERVE_SHARE, LEAST_RESERVE, MOST_RESERVE = 0.05, 64 << 20, RESERVE_BATCH


class Peak:
    """Allocation peak of a stretch of code; None where the device does not count (CPU)."""

    def __init__(self, device: torch.device):
        self.device = device
        self.start = 0
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self.start = int(torch.cuda.memory_allocated(device))

    def highest(self) -> int | None:
        """Largest number of bytes allocated since the start."""
        if self.device.type != "cuda":
            return None
        return int(torch.cuda.max_memory_allocated(self.device))

    def since_start(self) -> int | None:
        """The same beyond what was allocated at the start."""
        highest = self.highest()
        return None if highest is None else highest - self.start


def allocated_bytes(device: torch.device) -> int | None:
    return int(torch.cuda.memory_allocated(device)) if device.type == "cuda" else None


def free() -> None:
    """Give back everything that nobody refers to any more, graphs included."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def usable_bytes(device: torch.device, limit: int | None = None) -> int | None:
    """Bytes that caches may take now: what is free (or ``limit``) without a reserve."""
    available = environment.free_memory_bytes(str(device))
    if limit is not None:
        available = limit if available is None else min(limit, available)
    if available is None:
        return None
    reserve = min(MOST_RESERVE, max(LEAST_RESERVE, int(RESERVE_SHARE * available)))
    return available - reserve


def memory_model(model: CateKVModel) -> MemoryModel:
    """Sizes of a loaded model."""
    embedding = model.model.get_input_embeddings().weight
    output = model.model.get_output_embeddings()
    tied = output is not None and output.weight is embedding
    return MemoryModel(
        layers=model.shape.layers,
        kv_heads=model.shape.kv_heads,
        head_dim=model.shape.head_dim,
        parameters=sum(parameter.numel() for parameter in model.model.parameters()),
        # a tied table is the output head too, and that is read whole at every step
        embedding_parameters=0 if tied else embedding.numel(),
        element_bytes=embedding.element_size(),
    )


class DoesNotFitError(RuntimeError):
    """Something was refused because there is too little memory for it."""


class NotComputedError(Exception):
    """A library does not compute the attention of this model."""


@contextlib.contextmanager
def noting_errors(measurement: Measurement) -> Iterator[None]:
    """An error becomes a note in the row, so that the others are measured; mistakes of the user go
    on."""
    try:
        yield
    except UserError:
        raise
    except DoesNotFitError as error:
        measurement.leave_out(TOO_LARGE, str(error))
    except NotComputedError as error:
        measurement.leave_out(ABSENT, str(error))
    except Exception as error:
        # whatever a driver or a compiler raises
        if ran_out_of_memory(error):
            measurement.leave_out(TOO_LARGE, "out of memory")
            return
        measurement.leave_out(FAILED, " ".join(f"{type(error).__name__}: {error}".split())[:300])
