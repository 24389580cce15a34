"""Mean queries of every head over one text, for TriAttention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.methods.base import Method, Needs, Observed, Selection
from catekv.methods.formulas.query_statistics import QueryStatistics
from catekv.models.shape import ModelShape

if TYPE_CHECKING:
    from catekv.model import CateKVModel


@dataclass(frozen=True)
class _QueryProbe(Method):
    """Adds up the queries of every layer, and keeps one token of it."""

    tokens: int = field(kw_only=True)
    layers: dict[int, Tensor] = field(kw_only=True)

    @property
    def needs(self) -> Needs:
        return Needs(window=self.tokens, rotation=True)

    def budget_table(self, tokens: int, shape: ModelShape) -> Tensor:
        return torch.ones(shape.layers, shape.kv_heads, dtype=torch.int64)

    def select_observed(self, observed: Observed) -> Selection:
        rotation = observed.required_rotation("triattention")
        half = len(rotation.inverse_frequencies)
        positions = torch.arange(observed.tokens, device=observed.keys.device)
        heads = []
        for queries in observed.queries[0]:
            plain = rotation.unrotate(queries.float(), positions)
            pairs = torch.complex(plain[:, :half], plain[:, half : 2 * half])
            mean = pairs.mean(dim=0)
            heads.append(torch.stack([mean.real, mean.imag, pairs.abs().mean(dim=0)]))
        self.layers[observed.layer] = torch.stack(heads, dim=1).cpu()
        keep = torch.zeros(observed.keys.shape[:3], dtype=torch.bool, device=observed.keys.device)
        keep[..., -1] = True
        return Selection(keep)

    def to_dict(self) -> dict[str, Any]:
        return {"name": "query_probe"}


def query_statistics(
    model: CateKVModel, ids: Sequence[int], chunk_size: int | None = 8192
) -> QueryStatistics:
    """Mean queries over a text, one layer in memory at a time; queries as attention used them,
    normalisation included. Layers that no method compresses get zeros.

    Args:
        ids: of the text.

    Raises:
        UserError: no text, or a model whose rotation cannot be taken back.
    """
    if not ids:
        raise UserError("the text has no tokens; give one to read queries from")
    found: dict[int, Tensor] = {}
    model.prefill(list(ids), chunk_size, _QueryProbe(tokens=len(ids), layers=found))
    missing = torch.zeros_like(next(iter(found.values())))
    return QueryStatistics(
        torch.stack([found.get(layer, missing) for layer in range(model.shape.layers)], dim=1)
    )
