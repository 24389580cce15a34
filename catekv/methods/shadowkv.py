"""ShadowKV (Sun et al., ICML 2025): low-rank keys stay, values go to the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.kernels.ragged import RaggedPrefix
from catekv.methods.base import Needs, Observed, Selection
from catekv.methods.example import Example, MemoryFormula
from catekv.methods.full import KeepsEverything
from catekv.methods.options import method_option
from catekv.methods.registry import register
from catekv.methods.stores.base import DecodeStore
from catekv.methods.stores.shadow import ShadowSettings
from catekv.methods.stores.shadow_reader import ShadowReader
from catekv.models.shape import ModelShape


def _chunks(method: Any, tokens: int, shape: ModelShape) -> dict[str, float]:
    """Terms of the memory formula: chunks in low rank, and tokens kept exactly beside them."""
    low = tokens // method.chunk - method.local
    return {"n": low, "exact": method.outliers * method.chunk + tokens - low * method.chunk}


@register
@dataclass(frozen=True)
class ShadowKV(KeepsEverything):
    """Keep keys in low rank and values in host memory; fetch the best chunks at every step.

    The pre-rotary keys of all KV heads together are approximated by a matrix of ``rank``. A chunk's
    landmark is the mean of its post-rotary keys; the chunks that agree least with theirs
    (``outliers``), the last ``local`` ones and what does not fill a chunk are kept exactly. A step
    takes the softmax of every query head over the landmarks and the maximum over the group,
    rebuilds the keys of the best chunks and fetches their values. Ties go to the earlier chunk.

    Prompts so short that a step would fetch everything are kept and read whole.

    Args:
        budget: tokens that a step fetches; rounded down to whole chunks.
        chunk: tokens per chunk.
        rank: of the keys of all heads together; never more than there are dimensions.
        outliers: chunks kept exactly.
        local: last whole chunks kept exactly.
    """

    name: ClassVar[str] = "shadowkv"
    paper: ClassVar[str] = (
        "ShadowKV: KV Cache in Shadows for High-Throughput Long-Context LLM Inference, ICML 2025"
    )
    effect: ClassVar[str] = "moves"
    example = Example(
        {"budget": 8, "chunk": 4, "rank": 8, "outliers": 1, "local": 1}, original=False, exact=False
    )
    memory_formula = MemoryFormula(
        "T",
        "(exact + budget)*e + n*d*s + n*chunk*rank*s/H + rank*d*s + n*chunk*d*s",
        "exact + budget",
        "n*d*s + budget*rank*s + rank*d*s",
        terms=_chunks,
    )

    budget: int = 2048
    chunk: int = method_option(8, least=1)
    rank: int = method_option(160, least=1)
    outliers: int = method_option(48, least=0)
    local: int = method_option(4, least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget < self.chunk:
            raise UserError(
                f"shadowkv: budget {self.budget} is less than one chunk of {self.chunk} tokens"
            )

    @property
    def needs(self) -> Needs:
        return Needs(rotation=True)

    def step_table(self, tokens: int, shape: ModelShape) -> Tensor:
        read = _chunks(self, tokens, shape)["exact"] + self.budget // self.chunk * self.chunk
        return torch.full((shape.layers, shape.kv_heads), min(tokens, int(read)))

    @property
    def own_store(self) -> bool:
        return True

    def decode_store(
        self, prefix: RaggedPrefix, observed: Observed, valid: Tensor | None, selection: Selection
    ) -> DecodeStore | None:
        settings = ShadowSettings(
            self.rank, self.chunk, self.outliers, self.local, self.budget // self.chunk
        )
        rotation = observed.required_rotation(self.name)
        return ShadowReader.build(prefix, rotation, [True] * len(prefix.host_rows), settings)
