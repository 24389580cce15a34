"""What fits a device: longest context, largest batch, and the refusal of what cannot fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch

from catekv.errors import UserError
from catekv.methods.base import Method
from catekv.models.shape import ModelShape
from catekv.models.sharding import is_tensor_parallel
from catekv.prefill.devices import GIB, free_memory_bytes
from catekv.prefill.peak import PrefillPeak, prefill_peak
from catekv.prefill.sizes import ModelSizes, sizes_of_model

#: Left free on a device beside what is counted here: its context, workspaces, logits, graphs, and
#: what its allocator cannot put to use. A batch leaves more of the last.
RESERVE_SINGLE = 1 * GIB
RESERVE_BATCH = 2 * GIB
#: Chunks below this save little more memory and cost time.
SMALL_CHUNK = 1024
#: No context is longer than this, however little a token takes.
LONGEST = 1 << 40


@dataclass(frozen=True)
class Workload:
    """A model and a method at work on a kind of device.

    Attributes:
        sizes: of the model. method: what compresses; None: nothing does, no layer.
        chunk_size: tokens per prefill chunk. new_tokens: room for tokens after the context.
        device: ``cuda`` or ``cpu``.
        prefilled: whether the context is read here; False: its cache comes from elsewhere (loaded,
            filled), so that only what decoding needs must fit.
    """

    sizes: ModelSizes
    method: Method | None
    chunk_size: int | None = 8192
    new_tokens: int = 0
    device: str = "cuda"
    prefilled: bool = True

    def cache_bytes(self, tokens: int, batch: int = 1) -> float:
        """What is kept of contexts of ``tokens`` tokens."""
        return batch * sum(self.sizes.kept_layer_bytes(self.method, tokens))

    def tail_bytes(self, batch: int = 1) -> float:
        """Room for the tokens after the context."""
        return batch * self.new_tokens * self.sizes.kv_bytes_per_token

    def resident_bytes(self, tokens: int, batch: int = 1) -> float:
        """Weights, cache and tail: what decoding holds."""
        cache = self.cache_bytes(tokens, batch) + self.tail_bytes(batch)
        return self.sizes.weight_bytes + cache

    def step_bytes(self, tokens: int, batch: int = 1) -> float:
        """Bytes that a decode step reads if it reads everything stored (the tail not counted)."""
        streamed = self.sizes.embedding_parameters * self.sizes.element_bytes
        return self.sizes.weight_bytes - streamed + self.cache_bytes(tokens, batch)

    def peak(self, tokens: int, batch: int = 1) -> PrefillPeak:
        """The fullest moment of the prefill."""
        return prefill_peak(self.sizes, self.method, tokens, batch, self.chunk_size, self.device)

    def needed_bytes(self, tokens: int, batch: int = 1) -> float:
        """The most that is ever held: in the prefill (if it happens here) or while decoding."""
        resident = self.resident_bytes(tokens, batch)
        return max(resident, self.peak(tokens, batch).total) if self.prefilled else resident

    def fits(self, tokens: int, batch: int, memory_bytes: int, reserve: int | None = None) -> bool:
        """Whether that leaves ``reserve`` (default :data:`RESERVE_SINGLE`, or
        :data:`RESERVE_BATCH`) of the memory."""
        if reserve is None:
            reserve = RESERVE_SINGLE if batch == 1 else RESERVE_BATCH
        return self.needed_bytes(tokens, batch) <= memory_bytes - reserve

    def longest_context(
        self, memory_bytes: int, batch: int = 1, reserve: int | None = None
    ) -> int | None:
        """Most tokens of context that fit; 0 if none do, None if any do (a method may keep a fixed
        number of tokens). The model's window is not looked at."""
        return _most(lambda tokens: self.fits(tokens, batch, memory_bytes, reserve))

    def largest_batch(self, tokens: int, memory_bytes: int, reserve: int | None = None) -> int:
        """Most sequences of ``tokens`` tokens that fit; 0 if none do."""
        return _most(lambda batch: self.fits(tokens, batch, memory_bytes, reserve)) or 0


def _most(fits: Callable[[int], bool]) -> int | None:
    """Largest number that fits, by doubling and halving; None if even :data:`LONGEST` does."""
    low, high = 0, 1
    while fits(high):
        if high >= LONGEST:
            return None
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


#: Sizes of the models that were asked about; their weights need not be counted again.
_sizes: WeakKeyDictionary[torch.nn.Module, ModelSizes] = WeakKeyDictionary()


class TooLittleMemoryError(UserError):
    """A prefill that cannot fit what is free; a smaller batch may."""


def ran_out_of_memory(error: Exception) -> bool:
    """Whether a device or the system had too little memory, however its allocator says so."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError | TooLittleMemoryError):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text


def refuse_unless_fits(
    model: torch.nn.Module,
    method: Method | None,
    tokens: int,
    batch: int,
    chunk_size: int | None,
    device: torch.device,
    shape: ModelShape,
    lengths: Sequence[int] | None = None,
) -> None:
    """Raise before a prefill that cannot fit what is free on its device.

    Nothing is refused where nobody can tell what is free, or for a method that decides by the
    prompt's content how much it keeps and would fit if it kept nothing.

    Args:
        model: loaded on one device; a model on several, or shared with other processes, is not
            judged.
        method: what compresses; None: all layers stay dense.
        tokens, batch: columns and sequences of the prompt.
        shape: of the model as its attention layers really are.
        lengths: tokens of the sequences without their padding; None: no padding.

    Raises:
        UserError: with what is needed, what is free and what would fit.
    """
    if is_tensor_parallel(model) or any(p.device != device for p in model.parameters()):
        return
    free = free_memory_bytes(str(device))
    if free is None:
        return
    if model not in _sizes:
        _sizes[model] = replace(
            sizes_of_model(model),
            query_heads=shape.query_heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
        )
    sizes = _sizes[model]
    work = Workload(sizes, method, chunk_size, device=device.type)
    peak = prefill_peak(sizes, method, tokens, batch, chunk_size, device.type, lengths)
    needed = float(peak.total)
    if not peak.complete:
        # whatever it decides to keep of the layers before
        decided = ("kept cache", "packed copy", "quantising")
        needed -= sum(peak.bytes_of(name) for name in decided)
    usable = free + sizes.weight_bytes
    if needed <= usable:
        return
    raise TooLittleMemoryError(_refusal(work, peak, tokens, batch, usable))


def _refusal(work: Workload, peak: PrefillPeak, tokens: int, batch: int, usable: int) -> str:
    unit, name_of_unit = (GIB, "GiB") if peak.total >= GIB else (2**20, "MiB")

    def amount(size: float) -> str:
        return f"{size / unit:.2f}"

    named = ("weights", "kept cache", "one dense layer", "hidden states")
    parts = [f"{name} {amount(peak.bytes_of(name))}" for name in named]
    rest = peak.total - sum(peak.bytes_of(name) for name in named)
    longest = work.longest_context(usable, batch, reserve=0) or 0
    what = f"{tokens} tokens" if batch == 1 else f"{batch} sequences of {tokens} tokens"
    advice = f"at most {longest} tokens fit"
    if batch > 1:
        advice += f", or {work.largest_batch(tokens, usable, reserve=0)} sequences"
    advice += "; shorten the context, keep less of it (ratio, retention, budget)"
    if work.chunk_size is None or work.chunk_size > SMALL_CHUNK:
        advice += ", lower chunk_size"
    return (
        f"a prefill of {what} needs {amount(peak.total)} {name_of_unit} ({', '.join(parts)}, "
        f"temporaries {amount(rest)}), and {amount(usable)} {name_of_unit} are free or hold the "
        f"weights; {advice}, or pass check_memory=False to try all the same"
    )
