"""Kernels over ragged rows, each beside its torch reference.

The functions here are the only entry points: they pick the implementation
(:mod:`catekv.kernels.dispatch`). Kernels know layouts and tensors; they know neither methods nor
transformers.
"""

from __future__ import annotations

from torch import Tensor

from catekv.errors import UserError
from catekv.kernels.append import append_torch
from catekv.kernels.dispatch import backends, choose
from catekv.kernels.ragged_decode import ragged_decode_reference, ragged_decode_torch
from catekv.kernels.workspace import Workspace
from catekv.layout import BlockList, RaggedPrefix

__all__ = [
    "Workspace",
    "append",
    "append_torch",
    "backends",
    "ragged_decode",
    "ragged_decode_reference",
    "ragged_decode_torch",
]


def ragged_decode(
    queries: Tensor,
    prefix: RaggedPrefix,
    tail_keys: Tensor,
    tail_values: Tensor,
    scaling: float,
    tail_mask: Tensor | None = None,
    *,
    tail_length: Tensor | None = None,
    blocks: BlockList | None = None,
    workspace: Workspace | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention of the newest tokens over a ragged prefix and a dense tail.

    A query sees the whole prefix (or the listed blocks of it), and the tail up to and including
    its own position.

    Args:
        queries: [batch, query_heads, query_tokens, head_dim], the last ``query_tokens`` positions.
        prefix: what is kept of the context.
        tail_keys, tail_values: [batch, kv_heads, tail, dim], the queries' own tokens included.
        scaling: factor of the logits.
        tail_mask: bool [batch or 1, 1, query_tokens or 1, tail], False where the tail is hidden in
            addition (padding).
        tail_length: int32 [1] on the device: how many of the tail's columns are in use, the
            queries' own included. None: all of them. With it the tail may be a buffer of fixed
            size, and nothing depends on the host (CUDA graphs).
        blocks: the part of the prefix to read; None: all of it.
        workspace: scratch memory to use; None: allocate it.
        backend: ``auto`` or one of :func:`backends`.

    Returns:
        [batch, query_heads, query_tokens, value_dim] in the dtype of the queries.

    Raises:
        UserError: unknown backend, or one that cannot take these arguments.
    """
    function = choose("ragged_decode", queries.device, backend)
    result: Tensor = function(
        queries, prefix, tail_keys, tail_values, scaling, tail_mask, tail_length, blocks, workspace
    )
    return result


def append(
    tail_keys: Tensor,
    tail_values: Tensor,
    keys: Tensor,
    values: Tensor,
    tail_length: Tensor,
    *,
    backend: str = "auto",
) -> None:
    """Write the newest tokens into tail buffers of fixed size, in place.

    The keys are post-rotary: models differ in their rotary embeddings, which therefore stay theirs
    and are not part of the kernel. Nothing depends on the host (CUDA graphs).

    Args:
        tail_keys, tail_values: buffers [batch, kv_heads, capacity, dim].
        keys, values: [batch, kv_heads, tokens, dim] in any memory order, in the buffers' dtype.
        tail_length: int32 [1] on the device: columns in use after the call; the tokens go to
            [tail_length - tokens, tail_length). Columns outside the buffers are not written.
        backend: ``auto`` or one of ``backends("append")``.

    Raises:
        UserError: more tokens than the buffers have columns, or an unknown backend.
    """
    tokens, capacity = keys.shape[2], tail_keys.shape[2]
    if tokens > capacity:
        raise UserError(
            f"{tokens} tokens do not fit into a tail of {capacity}; make it larger first"
        )
    unsupported = None
    if any(tensor.stride(-1) != 1 for tensor in (tail_keys, tail_values, keys, values)):
        unsupported = "a token's numbers do not lie behind each other in memory"
    function = choose("append", keys.device, backend, unsupported=unsupported)
    function(tail_keys, tail_values, keys, values, tail_length)
