"""CateKV (ICML 2025): consistent heads keep a small fixed set of chunks, adaptive heads keep all
tokens or a share of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from catekv import kernels
from catekv.errors import UserError
from catekv.kernels.ragged import RaggedPrefix
from catekv.kernels.sparse_prefill import require_minference
from catekv.methods.base import Method, Needs, Observed, Selection
from catekv.methods.example import WHOLE, Example, MemoryFormula
from catekv.methods.formulas.scoring import CHUNK_RULES, top_mask
from catekv.methods.head_mask import HeadMask
from catekv.methods.options import assign, method_option
from catekv.methods.prompt_layout import (
    DEFAULT_GUARD,
    DEFAULT_WINDOW,
    VARIANTS,
    PromptLayout,
    floor_count,
    init_tokens_of,
    prompt_layout,
    recent_tokens_of,
)
from catekv.methods.registry import register
from catekv.methods.stores.base import DecodeStore
from catekv.methods.stores.block_reader import Reading
from catekv.methods.stores.quest import QuestReader
from catekv.methods.stores.shadow import ShadowSettings
from catekv.methods.stores.shadow_reader import ShadowReader
from catekv.models.shape import ModelShape

RETENTION_RANGES = ("middle", "all_but_window")
READS = ("all", "quest", "shadowkv")
PREFILLS = ("dense", "minference")
DEFAULT_RATIO = 0.4


def _small(shape: ModelShape) -> dict[str, Any]:
    """An example whose first head alone is adaptive."""
    adaptive = torch.zeros(shape.layers, shape.kv_heads)
    adaptive[0, 0] = 1
    options = {"window": 4, "chunk_size": 4, "guard_tokens": 4, "init_tokens": 2}
    return {**options, "budget": 20, "recent_tokens": 4, "head_mask": HeadMask(adaptive)}


def _whole(shape: ModelShape) -> dict[str, Any]:
    every_head = HeadMask(torch.ones(shape.layers, shape.kv_heads))
    return {**_small(shape), "budget": WHOLE, "head_mask": every_head}


@register
@dataclass(frozen=True)
class CateKV(Method):
    """Keep everything (or a share) in adaptive heads and ``budget`` tokens in consistent heads.

    Chunks of the prompt's middle are scored by the attention of the last ``window`` queries; the
    best ones stay together with the first and the last tokens (:func:`prompt_layout`). Ties go to
    the earlier chunk. A prompt no longer than the budget and the tail is kept whole. Options are
    those of the decision table; None means the value of the variant. Edges and window that are not
    given are those that the mask was made with (:attr:`HeadMask.edges`), if the budget holds them;
    else they follow the budget by the paper's rule.

    Args:
        head_mask: a :class:`HeadMask`, the path of one (folder, CSV or DuoAttention pattern), or
            its ``to_dict()``.
        ratio: r, which mask of a folder (default 0.4), or of which ratio the mask given must be;
            holds the mask's own ratio afterwards.
        retention: eta in (0, 1], share of middle chunks that adaptive heads keep.
        budget: b, tokens of a consistent head, edges included, without the tail of up to
            ``guard_tokens + chunk_size - 1`` tokens.
        window: L, last prompt queries that score (default: the mask's, or 64).
        chunk_size: neighbouring tokens kept or dropped together.
        init_tokens, recent_tokens: the edges in tokens (default: the mask's, or b/32 and b/128; at
            the published budget of 2048 the official variant has 64 and 256). ``recent_tokens``
            also takes ``"b/128"`` (the paper's rule).
        guard_tokens: at the end of the prompt, behind the recent ones (default: the mask's, or 32).
        variant: ``official`` (as released) or ``paper`` (as printed).
        retention_score: ``sum_of_chunk_max`` (official) or ``max_of_chunk_sum`` (paper).
        retention_range: ``middle`` (official), or ``all_but_window`` (paper): all tokens before the
            window compete for the whole budget and only the window is an edge.
        read: what a step reads of adaptive heads: ``all`` they keep; ``quest``, the ``budget``
            tokens' worth of chunks with the highest bounds, edges competing, and the tail;
            ``shadowkv``, keys in low rank and values on the host, of which a step fetches
            ``budget`` tokens. Consistent heads, and everything while a question is read, are read
            whole.
        rank, outliers, local: options of :class:`ShadowKV`, for ``read="shadowkv"``; its chunks
            have ``chunk_size`` tokens.
        prefill: attention while the prompt is read: ``dense``, or ``minference``, which needs the
            package of that name and the prompt in one piece.

    Raises:
        UserError: no mask, a mask of another shape, or a number outside its range.
    """

    name: ClassVar[str] = "catekv"
    #: its budget is that of the consistent heads, and goes with ``keep``
    size_options: ClassVar[tuple[str, ...]] = ()
    example = Example(_small, _whole, exact=False)
    memory_formula = MemoryFormula(
        "ratio*T + (1-ratio)*(budget + tail)",
        terms=lambda method, tokens, shape: {"tail": method.layout(tokens).tail},
    )
    paper: ClassVar[str] = (
        "CateKV: On Sequential Consistency for Long-Context LLM Inference Acceleration, ICML 2025"
    )

    head_mask: HeadMask | str | Path | dict[str, Any] | None = None
    ratio: float | None = method_option(None, above=0, most=1)
    retention: float = method_option(1.0, above=0, most=1)
    budget: int = method_option(2048, least=1)
    window: int | None = method_option(None, least=1)
    chunk_size: int = method_option(8, least=1)
    init_tokens: int | None = method_option(None, least=0)
    recent_tokens: int | str | None = None
    guard_tokens: int | None = method_option(None, least=0)
    variant: str = method_option("official", words=VARIANTS)
    retention_score: str | None = method_option(None, words=CHUNK_RULES)
    retention_range: str | None = method_option(None, words=RETENTION_RANGES)
    read: str = method_option("all", words=READS)
    rank: int = method_option(160, least=1)
    outliers: int = method_option(48, least=0)
    local: int = method_option(4, least=0)
    prefill: str = method_option("dense", words=PREFILLS)

    def __post_init__(self) -> None:
        super().__post_init__()
        of_variant = VARIANTS.index(self.variant)
        assign(
            self,
            retention_score=self.retention_score or CHUNK_RULES[of_variant],
            retention_range=self.retention_range or RETENTION_RANGES[of_variant],
        )
        self._check_read()
        self._resolve_mask()
        self._resolve_edges()

    def _check_read(self) -> None:
        if self.prefill == "minference":
            require_minference()
        if self.read == "shadowkv" and self.retention < 1:
            raise UserError(
                f"catekv: read='shadowkv' needs all tokens of adaptive heads, and retention "
                f"{self.retention} drops some; set retention=1"
            )
        if self.read != "all" and self.budget < self.chunk_size:
            raise UserError(
                f"catekv: budget {self.budget} is less than one chunk of {self.chunk_size} tokens"
            )

    def _resolve_mask(self) -> None:
        mask = self.head_mask
        if mask is None:
            raise UserError(
                "catekv needs a head mask: pass head_mask=FOLDER (./run_headmask.sh MODEL makes "
                "one for any model; select_headmask/ holds those that come with the project)"
            )
        mask = HeadMask.given(mask, self.ratio, DEFAULT_RATIO)
        assign(self, head_mask=mask, ratio=mask.nominal_ratio)

    def _resolve_edges(self) -> None:
        own = self.mask.edges
        init, recent = self._edges(own)
        if self.retention_range == "middle" and self.budget < init + recent:
            init, recent = self._edges({})
        if self.retention_range == "middle" and self.budget < init + recent:
            raise UserError(
                f"catekv: budget {self.budget} is smaller than the edges it includes ({init} "
                f"initial + {recent} recent tokens); raise the budget or lower init_tokens and "
                "recent_tokens"
            )
        window, guard = self.window, self.guard_tokens
        assign(
            self,
            init_tokens=init,
            recent_tokens=recent,
            window=own.get("window", DEFAULT_WINDOW) if window is None else window,
            guard_tokens=own.get("guard_tokens", DEFAULT_GUARD) if guard is None else guard,
        )

    def _tokens(self, name: str) -> int:
        """An edge or the window, which has its value by now."""
        value = getattr(self, name)
        assert isinstance(value, int)
        return value

    def _edges(self, own: Mapping[str, int]) -> tuple[int, int]:
        """Initial and recent tokens: as given, else as a mask was made, else by the budget."""
        init, recent = self.init_tokens, self.recent_tokens
        return (
            init_tokens_of(own.get("init_tokens") if init is None else init, self.budget),
            recent_tokens_of(
                own.get("recent_tokens") if recent is None else recent, self.variant, self.budget
            ),
        )

    @property
    def prefill_attention(self) -> str:
        return self.prefill

    def scored(self, tokens: int) -> tuple[int, int]:
        layout = self.layout(tokens)
        return layout.chunks * layout.chunk_size, layout.chunks

    @property
    def mask(self) -> HeadMask:
        assert isinstance(self.head_mask, HeadMask)
        return self.head_mask

    @property
    def needs(self) -> Needs:
        window = DEFAULT_WINDOW if self.window is None else self.window
        return Needs(window=window, rotation=self.read == "shadowkv")

    def validate(self, shape: ModelShape) -> None:
        self.mask.validate(shape)

    def with_total(self, total: int, tokens: int, shape: ModelShape) -> Method:
        """As many heads of the mask's order are adaptive as ``total`` entries allow; what is left
        goes to the budget of the others, in whole chunks. A mask without an order stays as it is.
        """
        mask, fitting = self.mask, self
        order = mask.order
        if order is not None:
            heads = mask.layers * mask.kv_heads

            def of(count: int) -> CateKV:
                part = HeadMask.from_order(order, count, mask.layers, mask.kv_heads, mask.meta)
                return replace(self, head_mask=part)

            # every adaptive head more adds the same
            least, most = (of(count).total_kept(tokens, shape) for count in (0, heads))
            count = heads
            if most > total:
                count = max(0, (total - least) * heads // (most - least)) if most > least else 0
            fitting = of(count)
        return super(CateKV, fitting).with_total(total, tokens, shape)

    def for_heads(self, heads: slice) -> CateKV:
        """The method with the part of the mask that a tensor-parallel process needs."""
        part = HeadMask(self.mask.adaptive[:, heads], {**self.mask.meta, "ratio": self.ratio})
        return replace(self, head_mask=part)

    def layout(self, tokens: int) -> PromptLayout:
        """Edges and scored chunks of a prompt of ``tokens`` tokens."""
        if self.retention_range == "middle":
            edges = map(self._tokens, ("init_tokens", "recent_tokens", "guard_tokens"))
            return prompt_layout(tokens, self.chunk_size, *edges)
        chunks = max(0, tokens - self._tokens("window")) // self.chunk_size
        end = chunks * self.chunk_size
        return PromptLayout(tokens, self.chunk_size, end, 0, end, chunks)

    def chunk_counts(self, tokens: int) -> tuple[int, int]:
        """Middle chunks kept by (adaptive, consistent) heads."""
        layout = self.layout(tokens)
        if tokens <= self.budget + layout.tail:
            return layout.chunks, layout.chunks
        edges = 0
        if self.retention_range == "middle":
            edges = self._tokens("init_tokens") + self._tokens("recent_tokens")
        consistent = min(layout.chunks, (self.budget - edges) // self.chunk_size)
        return floor_count(layout.chunks * self.retention), consistent

    def budget_table(self, tokens: int, shape: ModelShape) -> Tensor:
        self.validate(shape)
        layout = self.layout(tokens)
        edges = tokens - layout.chunks * self.chunk_size
        adaptive, consistent = (edges + n * self.chunk_size for n in self.chunk_counts(tokens))
        return torch.where(self.mask.adaptive, adaptive, consistent)

    def select_observed(self, observed: Observed) -> Selection:
        keys = observed.keys
        batch, heads, tokens, _ = keys.shape
        if heads != self.mask.kv_heads or observed.layer >= self.mask.layers:
            raise UserError(
                f"layer {observed.layer} with {heads} KV heads does not fit the head mask of "
                f"{self.mask.layers} layers x {self.mask.kv_heads} KV heads; pass a mask of this "
                "model"
            )
        layout = self.layout(tokens)
        keep = torch.ones(batch, heads, tokens, dtype=torch.bool, device=keys.device)
        adaptive, consistent = self.chunk_counts(tokens)
        counts = torch.where(self.mask.adaptive[observed.layer], adaptive, consistent)
        scored = (counts < layout.chunks).nonzero().squeeze(-1)
        if len(scored):
            chosen = self._choose(observed, layout, scored.to(keys.device), counts[scored])
            start, stop = layout.middle_start, layout.middle_end
            keep[:, scored, start:stop] = chosen.repeat_interleave(self.chunk_size, dim=-1)
        return Selection(keep)

    def _choose(
        self, observed: Observed, layout: PromptLayout, heads: Tensor, counts: Tensor
    ) -> Tensor:
        """Best chunks of some KV heads: bool [batch, len(heads), chunks]."""
        assert self.retention_score is not None
        scores = kernels.window_scores(
            observed.queries,
            observed.keys,
            observed.scaling,
            layout.middle_start,
            layout.middle_end,
            self.chunk_size,
            self.retention_score,
            heads=heads,
            form=observed.form,
        )
        return top_mask(scores, counts)

    @property
    def own_store(self) -> bool:
        return self.read != "all"

    def decode_store(
        self, prefix: RaggedPrefix, observed: Observed, valid: Tensor | None, selection: Selection
    ) -> DecodeStore | None:
        batch, _, tokens, _ = observed.keys.shape
        adaptive = self.mask.adaptive[observed.layer].tolist() * batch
        top = self.budget // self.chunk_size
        if self.read == "shadowkv":
            settings = ShadowSettings(self.rank, self.chunk_size, self.outliers, self.local, top)
            rotation = observed.required_rotation(f"{self.name} with read='shadowkv'")
            return ShadowReader.build(prefix, rotation, adaptive, settings)
        if self.read == "quest":
            true = [tokens] * batch if valid is None else valid.sum(dim=-1).tolist()
            readings = [
                self._reading(length, true[row // prefix.kv_heads], top) if adaptive[row] else None
                for row, (_, length) in enumerate(prefix.host_rows)
            ]
            return QuestReader.build(prefix, readings)
        return None

    def _reading(self, length: int, tokens: int, top: int) -> Reading:
        """How an adaptive head that keeps ``length`` of ``tokens`` tokens is read: the best chunks
        and what lies behind the last whole one of the body."""
        body = max(0, length - self.layout(tokens).tail)
        behind = -(-length // self.chunk_size) - body // self.chunk_size
        return Reading(self.chunk_size, top, always=behind)
