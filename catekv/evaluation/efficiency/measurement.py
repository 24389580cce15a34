"""What was measured of one variant at one length and batch size."""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass, field
from typing import Any

from catekv.prefill.sizes import MemoryModel

#: Why a row has no times: ``absent`` (a package is missing), ``too large`` (does not fit into the
#: device's memory), ``failed`` (an error, the only one that changes the exit code).
MEASURED, ABSENT, TOO_LARGE, FAILED = "measured", "absent", "too large", "failed"


@dataclass
class Measurement:
    """One row of a table; seconds and bytes, None where something was not measured.

    Attributes:
        variant: label of the row. method: False for the full caches it is compared with.
        length: context tokens. batch: sequences.
        kept_tokens: mean per layer and KV head after the context.
        code_bytes: of the kept entries as codes with their scales; None: in the model's type.
        stored_bytes, full_bytes: bytes the cache allocates, and those of an uncompressed one.
        resident_bytes: weights, and what the device's allocator holds more once this variant is
            built and has decoded (CUDA only).
        fill: ``random`` or ``prefill``: where the cache's contents come from.
        prefill_seconds, compress_seconds, first_token_seconds, prefill_peak_bytes: of a real
            prefill; the peak counts what was allocated beyond the weights (CUDA only).
        decode_peak_bytes: largest allocation during decoding, weights included (CUDA only).
        captured, reason: whether the step ran from a CUDA graph, and why not.
        fused: whether it was the fused step (:mod:`catekv.decode.fused`).
        step_seconds: time of every recorded step, on the device's clock where it has one.
        wall_seconds: seconds per step of every round on the host's clock.
        step_bytes: weights and cache that a step has to read.
        ideal: step bytes of the full cache over those of this one.
        attention_seconds: the attention kernel alone over all layers. rest_seconds: a step in which
            attention does nothing.
        status, note: see above; the note is the reason in words.
        distinct_layers: layers with memory of their own where the whole cache is too large; None
            where all have.
    """

    variant: str
    length: int
    batch: int
    method: bool = False
    kept_tokens: float = 0.0
    code_bytes: int | None = None
    stored_bytes: int = 0
    full_bytes: int = 0
    resident_bytes: int | None = None
    fill: str = ""
    prefill_seconds: float | None = None
    compress_seconds: float | None = None
    first_token_seconds: float | None = None
    prefill_peak_bytes: int | None = None
    decode_peak_bytes: int | None = None
    captured: bool = False
    fused: bool = False
    reason: str = ""
    graph_bytes: int | None = None
    step_seconds: list[float] = field(default_factory=list)
    wall_seconds: list[float] = field(default_factory=list)
    step_bytes: float = 0.0
    ideal: float = 1.0
    attention_seconds: float | None = None
    rest_seconds: float | None = None
    status: str = MEASURED
    note: str = ""
    distinct_layers: int | None = None

    @property
    def median_step(self) -> float | None:
        return statistics.median(self.step_seconds) if self.step_seconds else None

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """First and third quartile of the step time."""
        if len(self.step_seconds) < 2:
            return None
        first, _, third = statistics.quantiles(self.step_seconds, n=4, method="inclusive")
        return first, third

    @property
    def tokens_per_second(self) -> float | None:
        step = self.median_step
        return None if step is None else self.batch / step

    @property
    def bytes_per_second(self) -> float | None:
        """Bytes a step must read over the time it took."""
        step = self.median_step
        return None if step is None else self.step_bytes / step

    @property
    def shared_memory(self) -> str:
        """What is special about a cache whose layers share memory, else nothing."""
        if self.distinct_layers is None:
            return ""
        return (
            f"the whole cache does not fit: {self.distinct_layers} layers have memory of their "
            "own, the others read it again"
        )

    def leave_out(self, status: str, note: str) -> None:
        """Turn the row into one that says why it has no times."""
        self.status, self.note = status, note
        self.step_seconds.clear()
        self.wall_seconds.clear()

    def to_dict(self) -> dict[str, Any]:
        """All fields and what follows from them, as plain values."""
        return {
            **dataclasses.asdict(self),
            "median_step_seconds": self.median_step,
            "quartile_step_seconds": self.quartiles,
            "tokens_per_second": self.tokens_per_second,
            "bytes_per_second": self.bytes_per_second,
        }


def speed_up(base: Measurement | None, other: Measurement) -> float | None:
    """Step time of ``base`` over that of ``other``, per token where batches differ."""
    if base is None or base.tokens_per_second is None or other.tokens_per_second is None:
        return None
    return other.tokens_per_second / base.tokens_per_second


def kept_bytes(row: Measurement, sizes: MemoryModel) -> float:
    """Bytes of a row's kept entries, which every step reads."""
    if row.code_bytes is not None:
        return row.code_bytes
    return row.batch * sizes.cache_bytes(row.kept_tokens)


def share_of_ideal(base: Measurement | None, other: Measurement) -> float | None:
    """How much of the ratio that bytes alone would give was reached."""
    ratio = speed_up(base, other)
    if base is None or ratio is None or not other.step_bytes:
        return None
    ideal = (base.step_bytes / base.batch) / (other.step_bytes / other.batch)
    return ratio / ideal
