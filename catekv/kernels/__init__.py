"""Attention kernels over ragged rows, each beside its torch reference.

:func:`ragged_decode` is the only entry point: it picks the implementation. Kernels know layouts
and tensors; they know neither methods nor transformers.
"""

from __future__ import annotations

from torch import Tensor

from catekv.kernels.ragged_decode import ragged_decode_reference, ragged_decode_torch
from catekv.layout import RaggedPrefix

__all__ = ["backends", "ragged_decode", "ragged_decode_reference", "ragged_decode_torch"]

_BACKENDS = {"torch": ragged_decode_torch, "reference": ragged_decode_reference}


def backends() -> list[str]:
    """Names that ``ragged_decode(backend=...)`` accepts besides ``auto``."""
    return sorted(_BACKENDS)


def ragged_decode(
    queries: Tensor,
    prefix: RaggedPrefix,
    tail_keys: Tensor,
    tail_values: Tensor,
    scaling: float,
    tail_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention of the newest tokens over a ragged prefix and a dense tail.

    Args:
        queries: [batch, query_heads, query_tokens, head_dim], the last ``query_tokens`` positions.
        prefix: what is kept of the context, seen by every query.
        tail_keys, tail_values: [batch, kv_heads, tail, dim], the queries' own tokens included.
        scaling: factor of the logits.
        tail_mask: bool [batch or 1, 1, query_tokens, tail], True where a query may look.
            None: query ``i`` sees the tail up to and including its own position.
        backend: ``auto`` or one of :func:`backends`.

    Returns:
        [batch, query_heads, query_tokens, value_dim] in the dtype of the queries.
    """
    function = _BACKENDS["torch" if backend == "auto" else backend]
    return function(queries, prefix, tail_keys, tail_values, scaling, tail_mask)
