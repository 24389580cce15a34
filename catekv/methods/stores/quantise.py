"""The prefix in eight bits per number, with one scale per stored key and per stored value."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from catekv.kernels.ragged import BlockList, RaggedPrefix
from catekv.kernels.workspace import Workspace
from catekv.methods.stores.base import DecodeStore

#: Format -> (number type, its largest number).
FORMATS = {"int8": (torch.int8, 127.0), "fp8": (torch.float8_e4m3fn, 448.0)}
#: Numbers that are quantised at a time, in float32.
BLOCK_NUMBERS = 1 << 24


def quantise(entries: Tensor, form: str) -> tuple[Tensor, Tensor]:
    """Numbers of eight bits and the scale of every entry.

    ``scale = max |x| / largest`` of the entry (1 for an entry of zeros), ``number = round(x /
    scale)`` to the nearest one of the format, ties to even. ``int8`` is then off by at most half a
    scale; ``fp8`` (e4m3) by at most 1/16 of the number, or 2**-10 scales near zero.

    Args:
        entries: [slots, dim].
        form: ``int8`` or ``fp8``.

    Returns:
        [slots, dim] in the format, float32 scales [slots, 1].
    """
    kind, largest = FORMATS[form]
    numbers = torch.empty(entries.shape, dtype=kind, device=entries.device)
    scales = torch.empty(len(entries), 1, dtype=torch.float32, device=entries.device)
    step = max(1, BLOCK_NUMBERS // max(1, entries.shape[-1]))
    for start in range(0, len(entries), step):
        block = entries[start : start + step].float()
        scale = block.abs().amax(dim=-1, keepdim=True) / largest
        scale = torch.where(scale > 0, scale, 1.0)
        block = (block / scale).clamp_(-largest, largest)
        numbers[start : start + step] = block.round_() if form == "int8" else block
        scales[start : start + step] = scale
    return numbers, scales


def dequantise(numbers: Tensor, scales: Tensor, out: Tensor) -> Tensor:
    """Write ``numbers * scales`` into ``out`` [slots, dim]; the product is formed in float32 and
    rounded once to the type of ``out``. Returns ``out``."""
    return out.copy_(numbers).mul_(scales)


class QuantisedPrefix(DecodeStore):
    """Keys and values of one layer in eight bits.

    A step writes the whole prefix in the model's number format into scratch memory that all layers
    of the cache share, and attention reads it there: memory falls to about half of 16-bit numbers,
    while a step moves 1 + 2 + 2 bytes per number instead of 2. It saves memory, not time.

    Args:
        parts: for keys and values each the numbers [slots, dim] and scales [slots, 1].
        plan: the same prefix with no keys and values, for its lengths, biases and number format.
    """

    capturable = True
    plain_logits = False

    def __init__(self, parts: tuple[tuple[Tensor, Tensor], ...], plan: RaggedPrefix):
        self.parts = parts
        self.plan = plan
        self._last: RaggedPrefix | None = None

    @classmethod
    def build(cls, prefix: RaggedPrefix, form: str) -> QuantisedPrefix:
        """Quantise a prefix; ``form`` is ``int8`` or ``fp8``."""
        keys, values = prefix.keys, prefix.values
        plan = dataclasses.replace(prefix, keys=keys[:0].clone(), values=values[:0].clone())
        return cls((quantise(keys, form), quantise(values, form)), plan)

    def read(
        self, queries: Tensor, scaling: float, workspace: Workspace | None = None
    ) -> tuple[RaggedPrefix, BlockList | None]:
        scratch = Workspace() if workspace is None else workspace
        whole = [
            dequantise(
                numbers,
                scales,
                scratch.take(name, tuple(numbers.shape), like.dtype, numbers.device),
            )
            for name, (numbers, scales), like in zip(
                ("dequantised keys", "dequantised values"),
                self.parts,
                (self.plan.keys, self.plan.values),
                strict=True,
            )
        ]
        last = self._last
        # the same object as long as the scratch memory stays: what is planned for it stays, too
        if last is not None and all(
            held.data_ptr() == new.data_ptr()
            for held, new in zip((last.keys, last.values), whole, strict=True)
        ):
            return last, None
        prefix = dataclasses.replace(self.plan, keys=whole[0], values=whole[1])
        if workspace is not None:
            self._last = prefix
        return prefix, None

    def lengths(self) -> Tensor:
        return self.plan.lengths.long()

    def tensors(self) -> list[Tensor]:
        return [tensor for part in self.parts for tensor in part] + self.plan.tensors()

    def select_rows(self, indices: list[int]) -> QuantisedPrefix:
        plan = self.plan.select_rows(indices)
        return self if plan is self.plan else type(self)(self.parts, plan)

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantisedPrefix:
        # immutable: forks share it; the scratch memory is that of whoever reads
        return self
