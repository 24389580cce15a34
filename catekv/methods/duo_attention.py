"""DuoAttention (Xiao et al., 2025): retrieval heads keep everything, streaming heads sinks and
recent tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from catekv.errors import NeedsAllHeadsError, UserError
from catekv.methods.allocator_files import read_scores
from catekv.methods.base import Method, Observed, Selection
from catekv.methods.example import WHOLE, Example, MemoryFormula, head_numbers
from catekv.methods.formulas.budgets import largest_remainder
from catekv.methods.head_mask import DUO_FILE, HeadMask, gates_in
from catekv.methods.options import assign, method_option
from catekv.methods.registry import register
from catekv.methods.streaming_llm import first_and_last
from catekv.models.shape import ModelShape, model_shape_of, refuse_other_extents

if TYPE_CHECKING:
    from catekv.kernels.ragged import RaggedPrefix
    from catekv.methods.stores.base import DecodeStore

#: Share of streaming heads where gates, and no mask, are given.
DEFAULT_SHARE = 0.5


def streaming_heads(gates: Tensor, share: float) -> Tensor:
    """Which heads stream: the ``round(share * heads)`` with the lowest gates, bool like ``gates``.

    Gates are clamped to [0, 1]. Among equal gates the lower flat index keeps everything first.
    """
    gates = gates.double().clamp(0, 1)
    order = gates.flatten().sort(descending=True, stable=True).indices
    count = round(share * gates.numel())
    streaming = torch.zeros(gates.numel(), dtype=torch.bool)
    streaming[order[gates.numel() - count :]] = True
    return streaming.view(gates.shape)


def read_gates(pattern: Any) -> tuple[tuple[float, ...], ...]:
    """Gates [layers, kv_heads] from a pattern: a mask, its ``to_dict()``, rows, a file or the
    folder that holds one."""
    if isinstance(pattern, dict):
        pattern = HeadMask.from_dict(pattern)
    if isinstance(pattern, HeadMask):
        pattern = pattern.adaptive.double()
    elif isinstance(pattern, str | Path) and Path(pattern).is_dir():
        pattern = gates_in(Path(pattern))
    return read_scores(pattern)


@register
@dataclass(frozen=True)
class DuoAttention(Method):
    """Keep everything in retrieval heads, and the first ``sinks`` and last ``recent`` tokens in
    streaming heads.

    Which head is which comes from gates that were trained once per model. Tokens generated later
    are appended and stay in all heads, unless ``rolling``: then every new token drives out the
    oldest recent one of a streaming head, as in the paper's cache of two groups.

    Args:
        pattern: gates [layers, kv_heads] as numbers or the path of a ``full_attention_heads.tsv``
            or RLKV's ``adapter_weights.tsv``, its folder, a CSV or an npz file; or a head mask
            (:class:`HeadMask`, or 0/1 numbers, 1 = retrieval), which says itself which heads
            stream.
        streaming_share: share of heads, with the lowest gates, that stream; default 0.5, or what a
            mask says.
        sinks: first tokens of a streaming head (64 or 128 in the paper).
        recent: last tokens of a streaming head.
        rolling: streaming heads drop their oldest recent token for each new one.
        total: entries of all layers and heads together, instead of ``streaming_share`` and
            ``recent``: as many heads as fit keep everything, those with the highest gates, and
            streaming heads get the rest as recent tokens.
    """

    name: ClassVar[str] = "duo_attention"
    example = Example(
        lambda shape: {"pattern": head_numbers(shape), "sinks": 2, "recent": 8},
        lambda shape: {"pattern": head_numbers(shape), "sinks": 2, "recent": WHOLE},
    )
    memory_formula = MemoryFormula(
        "share*(sinks + recent) + (1-share)*T",
        terms=lambda method, tokens, shape: {"share": float(method.streaming.double().mean())},
    )
    paper: ClassVar[str] = (
        "DuoAttention: Efficient Long-Context LLM Inference with Retrieval and Streaming Heads, "
        "ICLR 2025"
    )

    or_without: ClassVar[str] = ", or with rolling=False"

    pattern: Any = method_option(
        None,
        convert=read_gates,
        needs=f"the gates of the model's heads; give pattern=FILE (a {DUO_FILE}) or a head mask",
    )
    streaming_share: float | None = method_option(None, least=0, most=1)
    sinks: int = method_option(128, least=0)
    recent: int = method_option(256, least=0)
    rolling: bool = False
    total: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        gates = self.gates
        if gates.dim() != 2:
            raise UserError(f"duo_attention: gates are [layers, KV heads], not {list(gates.shape)}")
        if self.streaming_share is None:
            is_mask = bool(((gates == 0) | (gates == 1)).all())
            share = float((gates == 0).double().mean()) if is_mask else DEFAULT_SHARE
            assign(self, streaming_share=share)
        if self.sinks + self.recent < 1:
            raise UserError("duo_attention: streaming heads need at least 1 sink or recent token")

    @property
    def gates(self) -> Tensor:
        """float64 [layers, kv_heads]."""
        return torch.tensor(self.pattern, dtype=torch.float64)

    @property
    def streaming(self) -> Tensor:
        """Which heads stream, bool [layers, kv_heads]."""
        assert self.streaming_share is not None
        return streaming_heads(self.gates, self.streaming_share)

    def validate(self, shape: ModelShape) -> None:
        own = tuple(self.gates.shape)
        refuse_other_extents("duo_attention: the pattern has", own, model_shape_of(shape))

    def with_total(self, total: int, tokens: int, shape: ModelShape) -> DuoAttention:
        """The method keeping exactly ``total`` entries of a prompt of ``tokens`` tokens."""
        method = replace(self, total=total)
        method.budget_table(tokens, shape)  # refuses what cannot be
        return method

    def for_heads(self, heads: slice) -> DuoAttention:
        if self.total is not None:
            raise NeedsAllHeadsError(
                "duo_attention: a total is split over all heads, which no process of a "
                "tensor-parallel group has; use streaming_share"
            )
        mask = (~self.streaming[:, heads]).double()
        return replace(self, pattern=mask, streaming_share=None)

    def budget_table(self, tokens: int, shape: ModelShape) -> Tensor:
        self.validate(shape)
        if self.total is not None:
            return self._table_of_total(tokens)
        edges = min(tokens, self.sinks + self.recent)
        return torch.where(self.streaming, edges, tokens)

    def _table_of_total(self, tokens: int) -> Tensor:
        gates = self.gates
        assert self.total is not None
        heads, edges = gates.numel(), min(tokens, self.sinks + self.recent)
        if self.total >= heads * tokens:
            return torch.full(gates.shape, tokens)
        whole = max(0, self.total - heads * edges) // max(1, tokens - edges)
        streaming = streaming_heads(gates, (heads - whole) / heads)
        rest = self.total - whole * tokens
        if rest < self.sinks * (heads - whole):
            raise UserError(
                f"duo_attention: a total of {self.total} tokens does not hold the {self.sinks} "
                f"sinks of {heads - whole} heads; raise the total or lower sinks"
            )
        table = torch.full(gates.shape, tokens)
        table[streaming] = largest_remainder(torch.ones(heads - whole), rest)
        return table

    def select_observed(self, observed: Observed) -> Selection:
        batch, heads, tokens, _ = observed.keys.shape
        kept = self.budget_table(tokens, observed.shape)[observed.layer].to(observed.keys.device)
        keep = first_and_last(tokens, self.sinks, (kept - self.sinks).clamp(min=0))
        return Selection(keep.expand(batch, heads, tokens).clone())

    @property
    def own_store(self) -> bool:
        return self.rolling

    def decode_store(
        self, prefix: RaggedPrefix, observed: Observed, valid: Tensor | None, selection: Selection
    ) -> DecodeStore | None:
        if not self.rolling:
            return None
        from catekv.methods.stores.rolling import RollingStore

        batch, _, tokens, _ = observed.keys.shape
        seen = [tokens] * batch if valid is None else valid.sum(dim=-1).tolist()
        capacities: list[int | None] = []
        recent: list[int] = []
        for length in seen:
            table, streams = self._capacities(length, observed.shape)
            pairs = zip(
                table[observed.layer].tolist(), streams[observed.layer].tolist(), strict=True
            )
            capacities += [count if rolls else None for count, rolls in pairs]
            recent += (table[streams] - self.sinks).tolist()
        if not recent:
            return None
        # layers without streaming heads take part, so that all tails stay equally long
        return RollingStore(prefix, capacities, self.sinks, seen, min(recent))

    def _capacities(self, tokens: int, shape: ModelShape) -> tuple[Tensor, Tensor]:
        """Entries that each head may hold while decoding, [layers, kv_heads], and whether it is
        one that streams."""
        if self.total is None:
            return torch.full_like(self.streaming, self.sinks + self.recent, dtype=torch.int64), (
                self.streaming
            )
        table = self.budget_table(tokens, shape)
        return table, table < tokens
