"""Quest (Tang et al., ICML 2024): every step reads the pages that could matter most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from catekv.kernels.ragged import RaggedPrefix
from catekv.methods.base import Observed, Selection
from catekv.methods.example import WHOLE, Example, MemoryFormula
from catekv.methods.full import KeepsEverything
from catekv.methods.options import method_option
from catekv.methods.registry import register
from catekv.methods.stores.base import DecodeStore
from catekv.methods.stores.block_reader import Reading
from catekv.methods.stores.quest import QuestReader
from catekv.models.shape import ModelShape


@register
@dataclass(frozen=True)
class Quest(KeepsEverything):
    """Keep everything; at every step read the pages with the highest bound of their logits.

    A page holds its smallest and largest key per dimension, so memory grows by ``2 / page`` of the
    keys. The bound is taken over the query heads of a group (the paper has one query head per KV
    head). Ties go to the earlier page. Generated tokens, and all of a prompt's pages while a
    question of several tokens is read, are read whole.

    Args:
        budget: tokens of the prompt that a step reads; rounded down to whole pages.
        page: tokens per page.
        full_layers: first layers that read everything.
        least_pages: pages that are read at least, however small the budget.
    """

    name: ClassVar[str] = "quest"
    paper: ClassVar[str] = (
        "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference, ICML 2024"
    )
    effect: ClassVar[str] = "skips"
    example = Example(
        {"budget": 12, "page": 4, "full_layers": 1, "least_pages": 1},
        {"budget": WHOLE},
        exact=False,
    )
    memory_formula = MemoryFormula(
        "T",
        "T*e + (1 - full_layers/L)*ceil(T/page)*2*d*s",
        "full_layers/L*T + (1 - full_layers/L)*(budget//page)*page",
        "(1 - full_layers/L)*ceil(T/page)*2*d*s",
    )

    budget: int = method_option(2048, least=1)
    page: int = method_option(16, least=1)
    full_layers: int = method_option(2, least=0)
    least_pages: int = method_option(3, least=1)

    @property
    def top_pages(self) -> int:
        """Pages that a step reads of every row."""
        return max(self.least_pages, self.budget // self.page)

    def step_table(self, tokens: int, shape: ModelShape) -> Tensor:
        table = torch.full((shape.layers, shape.kv_heads), tokens)
        table[self.full_layers :].clamp_(max=self.top_pages * self.page)
        return table

    @property
    def own_store(self) -> bool:
        return True

    def decode_store(
        self, prefix: RaggedPrefix, observed: Observed, valid: Tensor | None, selection: Selection
    ) -> DecodeStore | None:
        if observed.layer < self.full_layers:
            return None
        reading = Reading(self.page, self.top_pages)
        return QuestReader.build(prefix, [reading] * len(prefix.host_rows))
