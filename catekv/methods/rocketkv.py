"""RocketKV (Behnam et al., ICML 2025): evict once, then look at a part at every step."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.kernels.ragged import RaggedPrefix
from catekv.methods.base import Method, Needs, Observed, Selection
from catekv.methods.example import Example, MemoryFormula
from catekv.methods.formulas.scoring import POOLINGS, top_mask, window_token_scores
from catekv.methods.options import method_option
from catekv.methods.registry import register
from catekv.methods.stores.base import DecodeStore
from catekv.methods.stores.hybrid import HybridReader, HybridReading, Refilter
from catekv.models.shape import ModelShape

PAGE_RULES = ("paper", "released")


@dataclass(frozen=True)
class RocketParameters:
    """How a total compression is divided: ``stage1`` by eviction, ``stage2`` by reading pages of
    ``page`` tokens on ``1 / head_dim_factor`` of the dimensions; ``r`` is stage 1's exponent."""

    r: float
    stage1: float
    stage2: float
    page: int
    head_dim_factor: float


def rocket_parameters(compression: float, page_rule: str = "paper") -> RocketParameters:
    """Divide a total compression c = tokens / budget (at least 1).

    ``r = min(0.2 + 0.06 log2 c, 0.8)``, stage 1 ``c^r``, stage 2 ``c^(1 - r)``; pages of
    ``ceil(sqrt(stage 2))`` tokens, never more than ``floor(stage 2)`` in the released code.
    """
    r = min(0.2 + 0.06 * math.log2(compression), 0.8)
    stage2 = compression ** (1 - r)
    page = math.ceil(math.sqrt(stage2))
    if page_rule == "released":
        page = max(1, min(math.floor(stage2), page))
    return RocketParameters(r, compression**r, stage2, page, stage2 / page)


def _stages(method: Any, tokens: int, shape: ModelShape) -> dict[str, float]:
    """Terms of the memory formula."""
    c = tokens / method.budget
    parts = rocket_parameters(c, method.page_rule)
    dims = round(shape.head_dim / parts.head_dim_factor)
    return {"c": c, "r": parts.r, "p": parts.page, "dims": dims}


@register
@dataclass(frozen=True)
class RocketKV(Method):
    """Evict to ``tokens / c^r`` by SnapKV with a wide pooling, then read ``budget / 2`` tokens a
    step.

    Every step looks at the dimensions in which the query group is largest, estimates each page
    there by its largest or smallest key, and attends exactly to the pages with the highest mean
    probability; the other half of the budget is what the estimate reads. Generated tokens, and
    everything while a question is read, are read whole. A prompt of at most ``budget`` tokens is
    kept and read whole.

    Args:
        budget: t, tokens that a step reads or spends on the estimate; c = tokens / t.
        window: last prompt queries that score; always kept.
        kernel: width of the pooling, odd.
        pooling: ``max`` or ``average``.
        page_rule: size of a page as in the ``paper`` or in the ``released`` code.
        multi_turn: evict nothing; what stage 1 would keep are the candidates of the steps until
            the next question, whose last queries choose others.
    """

    name: ClassVar[str] = "rocketkv"
    example = Example({"budget": 12, "window": 4, "kernel": 3}, exact=False)
    memory_formula = MemoryFormula(
        "floor(T/c**r)",
        "kept*e + ceil(kept/p)*2*d*s",
        "budget//2//p*p",
        "ceil(kept/p)*dims*s",
        terms=_stages,
    )
    paper: ClassVar[str] = (
        "RocketKV: Accelerating Long-Context LLM Inference via Two-Stage KV Cache Compression, "
        "ICML 2025"
    )

    budget: int = 2048
    window: int = method_option(32, least=1)
    kernel: int = method_option(63, least=1, odd=True)
    pooling: str = method_option("max", words=POOLINGS)
    page_rule: str = method_option("paper", words=PAGE_RULES)
    multi_turn: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget < max(2, self.window):
            raise UserError(
                f"rocketkv: budget {self.budget} is smaller than the window of {self.window} "
                "tokens that is always kept; raise the budget"
            )

    @property
    def needs(self) -> Needs:
        return Needs(window=self.window)

    def parameters(self, tokens: int) -> RocketParameters:
        """The two stages for a prompt of ``tokens`` tokens."""
        return rocket_parameters(max(1.0, tokens / self.budget), self.page_rule)

    def filtered_tokens(self, tokens: int) -> int:
        """Tokens that stage 1 lets through per head."""
        return min(tokens, int(tokens / self.parameters(tokens).stage1))

    def budget_table(self, tokens: int, shape: ModelShape) -> Tensor:
        kept = tokens if self.multi_turn else self.filtered_tokens(tokens)
        return torch.full((shape.layers, shape.kv_heads), kept)

    def select_observed(self, observed: Observed) -> Selection:
        keys = observed.keys
        batch, heads, tokens, _ = keys.shape
        keep = torch.ones(batch, heads, tokens, dtype=torch.bool, device=keys.device)
        before = tokens - observed.queries.shape[2]
        count = self.filtered_tokens(tokens) - observed.queries.shape[2]
        if not self.multi_turn and count < before:
            scores = window_token_scores(
                observed.queries,
                keys,
                observed.scaling,
                self.kernel,
                self.pooling,
                form=observed.form,
            )
            keep[:, :, :before] = top_mask(scores, torch.full((batch, heads), count))
        return Selection(keep)

    def reading(self, tokens: int, head_dim: int) -> HybridReading | None:
        """What a step reads of a prompt of ``tokens`` tokens; None: everything."""
        if tokens <= self.budget:
            return None
        parameters = self.parameters(tokens)
        dims = min(head_dim, max(1, round(head_dim / parameters.head_dim_factor)))
        top = max(1, self.budget // 2 // parameters.page)
        refilter = None
        if self.multi_turn:
            kept = self.filtered_tokens(tokens)
            refilter = Refilter(kept, self.window, self.kernel, self.pooling)
        return HybridReading(parameters.page, top, dims=dims, refilter=refilter)

    @property
    def own_store(self) -> bool:
        return True

    def decode_store(
        self, prefix: RaggedPrefix, observed: Observed, valid: Tensor | None, selection: Selection
    ) -> DecodeStore | None:
        batch, heads, tokens, dim = observed.keys.shape
        true = [tokens] * batch if valid is None else valid.sum(dim=-1).tolist()
        readings = [self.reading(count, dim) for count in true for _ in range(heads)]
        keep = None
        if self.multi_turn:
            once = dataclasses.replace(self, multi_turn=False)
            chosen = once.select_padded([observed], valid)[0].keep
            assert chosen is not None
            keep = [
                row if valid is None else row[valid[b]] for b in range(batch) for row in chosen[b]
            ]
        return HybridReader.build(prefix, readings, keep)
