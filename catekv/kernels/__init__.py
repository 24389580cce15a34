"""Kernels over ragged rows, each beside its torch reference.

The functions here are the only entry points: they pick the implementation
(:mod:`catekv.kernels.dispatch`). Kernels know layouts and tensors; they know neither methods nor
transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from catekv.errors import UserError
from catekv.kernels.append import append_torch
from catekv.kernels.column_sums import column_sums_torch
from catekv.kernels.copy import copy_torch, why_no_copy_kernel
from catekv.kernels.dispatch import backends, choose
from catekv.kernels.logits import PLAIN, LogitForm
from catekv.kernels.pack import pack_torch
from catekv.kernels.page_bounds import (
    REDUCTIONS,
    PageBounds,
    page_bounds_torch,
    page_scores_torch,
    top_pages,
)
from catekv.kernels.quantised import QuantisedPrefix
from catekv.kernels.ragged import BlockList, RaggedPrefix
from catekv.kernels.ragged_decode import (
    ragged_decode_reference,
    ragged_decode_torch,
    why_no_decode_kernel,
)
from catekv.kernels.rms_norm import rms_norm_torch, why_no_norm_kernel
from catekv.kernels.rotary_append import HeadNorms, rotary_append_torch, why_no_rotary_kernel
from catekv.kernels.silu_multiply import silu_multiply_torch
from catekv.kernels.window_scores import why_no_window_kernel, window_scores_torch
from catekv.kernels.window_statistics import window_statistics_torch
from catekv.kernels.workspace import Workspace

__all__ = [
    "PLAIN",
    "HeadNorms",
    "LogitForm",
    "PageBounds",
    "Workspace",
    "append",
    "append_torch",
    "backends",
    "column_sums",
    "column_sums_torch",
    "copy",
    "copy_torch",
    "pack",
    "pack_torch",
    "page_bounds",
    "page_bounds_torch",
    "page_scores",
    "page_scores_torch",
    "ragged_decode",
    "ragged_decode_reference",
    "ragged_decode_torch",
    "rms_norm",
    "rms_norm_torch",
    "rotary_append",
    "rotary_append_torch",
    "silu_multiply",
    "silu_multiply_torch",
    "top_pages",
    "window_scores",
    "window_scores_torch",
    "window_statistics",
    "window_statistics_torch",
]


def ragged_decode(
    queries: Tensor,
    prefix: RaggedPrefix | QuantisedPrefix,
    tail_keys: Tensor,
    tail_values: Tensor,
    scaling: float,
    tail_mask: Tensor | None = None,
    *,
    tail_length: Tensor | None = None,
    blocks: BlockList | None = None,
    workspace: Workspace | None = None,
    form: LogitForm = PLAIN,
    backend: str = "auto",
) -> Tensor:
    """Attention of the newest tokens over a ragged prefix and a dense tail.

    A query sees the whole prefix (or the listed blocks of it), and the tail up to and including
    its own position.

    Args:
        queries: [batch, query_heads, query_tokens, head_dim], the last ``query_tokens`` positions.
        prefix: what is kept of the context, as it is or in eight or four bits.
        tail_keys, tail_values: [batch, kv_heads, tail, dim], the queries' own tokens included.
        scaling: factor of the logits.
        tail_mask: bool [batch or 1, 1, query_tokens or 1, tail], False where the tail is hidden in
            addition (padding).
        tail_length: int32 [1] on the device: how many of the tail's columns are in use, the
            queries' own included. None: all of them. With it the tail may be a buffer of fixed
            size, and nothing depends on the host (CUDA graphs).
        blocks: the part of the prefix to read; None: all of it.
        workspace: scratch memory to use; None: allocate it.
        form: soft cap and sinks of the logits; a bias of the prefix is added after the cap.
        backend: ``auto`` or one of :func:`backends`.

    Returns:
        [batch, query_heads, query_tokens, value_dim] in the dtype of the queries.

    Raises:
        UserError: unknown backend, or one that cannot take these arguments.
    """
    if isinstance(prefix, QuantisedPrefix) and blocks is not None:
        prefix = prefix.dequantised()  # a part of the codes is read by no kernel
    if isinstance(prefix, QuantisedPrefix):
        kernel, plan = "quantised_decode", prefix.plan
    else:
        kernel, plan = "ragged_decode", prefix
    reason = why_no_decode_kernel(queries, plan, tail_keys)
    function = choose(kernel, queries.device, backend, unsupported=reason)
    result: Tensor = function(
        queries,
        prefix,
        tail_keys,
        tail_values,
        scaling,
        tail_mask,
        tail_length,
        blocks,
        workspace,
        form,
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


def rms_norm(
    states: Tensor,
    weight: Tensor,
    epsilon: float,
    residual: Tensor | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """RMSNorm (Zhang and Sennrich 2019) as Llama computes it, with the addition before it.

    Statistics are float32; the normed states are rounded to the stored type before they are
    multiplied with the weight, and the product is rounded again.

    Args:
        states: [..., width]. weight: [width]. epsilon: added to the mean square.
        residual: [..., width], added to the states first; None: nothing is.
        backend: ``auto`` or one of ``backends("rms_norm")``.

    Returns:
        The sum (the states themselves without a residual), which is the next residual, and the
        normed sum.
    """
    unsupported = why_no_norm_kernel(states, weight, residual)
    function = choose("rms_norm", states.device, backend, unsupported=unsupported)
    result: tuple[Tensor, Tensor] = function(states, weight, epsilon, residual)
    return result


def rotary_append(
    projected: Tensor,
    cos: Tensor,
    sin: Tensor,
    tail_keys: Tensor,
    tail_values: Tensor,
    tail_length: Tensor,
    query_heads: int,
    *,
    interleaved: bool = False,
    norms: HeadNorms | None = None,
    backend: str = "auto",
) -> Tensor:
    """Rotate queries and keys of one new token per sequence, and append its keys and values.

    Args:
        projected: [batch, 1, (query_heads + 2 * kv_heads) * head_dim]: queries, keys and values of
            all heads side by side, as one product leaves them.
        cos, sin: [batch or 1, 1, rotary_dim], the model's tables at the token's position; numbers
            of a head beyond rotary_dim are not rotated.
        tail_keys, tail_values: buffers [batch, kv_heads, capacity, head_dim].
        tail_length: as in :func:`append`.
        query_heads: how many of the heads are queries.
        interleaved: pairs that turn together are neighbours; else half of rotary_dim apart.
        norms: of queries and keys before they are rotated; None: there are none.
        backend: ``auto`` or one of ``backends("rotary_append")``.

    Returns:
        The rotated queries [batch, query_heads, 1, head_dim], contiguous.
    """
    unsupported = why_no_rotary_kernel(projected, cos, sin, tail_keys, tail_values)
    function = choose("rotary_append", projected.device, backend, unsupported=unsupported)
    queries: Tensor = function(
        projected, cos, sin, tail_keys, tail_values, tail_length, query_heads, interleaved, norms
    )
    return queries


def silu_multiply(gate_up: Tensor, *, backend: str = "auto") -> Tensor:
    """``silu(gate) * up``, the activation rounded to the stored type before the product.

    Args:
        gate_up: [..., 2 * width], the gate before the other half, as one product leaves them.
        backend: ``auto`` or one of ``backends("silu_multiply")``.

    Returns:
        [..., width].
    """
    unsupported = None
    if not gate_up.is_contiguous():
        unsupported = "gate and up do not lie in memory without gaps"
    function = choose("silu_multiply", gate_up.device, backend, unsupported=unsupported)
    result: Tensor = function(gate_up)
    return result


def pack(
    keys: Tensor,
    values: Tensor,
    keep: Tensor,
    offsets: Tensor,
    slots: int,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Copy the kept entries of every row to flat storage, in prompt order.

    Args:
        keys: [batch, kv_heads, tokens, head_dim]; values: [batch, kv_heads, tokens, value_dim].
        keep: bool [batch, kv_heads, tokens].
        offsets: int64 [batch, kv_heads], first slot of each row; rows must not overlap.
        slots: entries kept by all rows together.
        backend: ``auto`` or one of ``backends("pack")``.

    Returns:
        Keys [slots, head_dim] and values [slots, value_dim].
    """
    unsupported = None
    if keys.stride(-1) != 1 or values.stride(-1) != 1:
        unsupported = "a token's numbers do not lie behind each other in memory"
    function = choose("pack", keys.device, backend, unsupported=unsupported)
    result: tuple[Tensor, Tensor] = function(keys, values, keep, offsets, slots)
    return result


def window_scores(
    queries: Tensor,
    keys: Tensor,
    scaling: float,
    start: int,
    stop: int,
    chunk_size: int = 1,
    rule: str = "sum_of_chunk_max",
    *,
    scored: int | None = None,
    heads: Tensor | None = None,
    form: LogitForm = PLAIN,
    backend: str = "auto",
) -> Tensor:
    """Score of every chunk from ``start`` on by the attention of the last prompt queries.

    The softmax runs over ``[start, stop)``, causal where it reaches into the window; probabilities
    are averaged over the query heads of a group and pooled by
    :func:`catekv.kernels.window_scores.chunk_scores`.

    Args:
        queries: [batch, query_heads, window, head_dim], the last queries of the prompt.
        keys: [batch, kv_heads, tokens, head_dim], the whole prompt.
        scaling: factor of the logits.
        start, stop: range of keys.
        chunk_size: tokens per chunk; the last chunk may be shorter.
        rule: ``sum_of_chunk_max`` or ``max_of_chunk_sum``; with ``chunk_size`` 1 both are the sum
            over the window's queries.
        scored: how many tokens from ``start`` on get a score; None: all of the range.
        heads: int64 [scored], ascending: the KV heads to score; None: all.
        form: soft cap and sinks of the logits.
        backend: ``auto`` or one of ``backends("window_scores")``.

    Returns:
        fp32 [batch, kv_heads or scored, chunks].
    """
    unsupported = why_no_window_kernel(queries, keys, chunk_size, form)
    function = choose("window_scores", keys.device, backend, unsupported=unsupported)
    scored = stop - start if scored is None else scored
    result: Tensor = function(
        queries, keys, scaling, start, stop, chunk_size, rule, scored, heads, form
    )
    return result


def window_statistics(
    queries: Tensor,
    keys: Tensor,
    scaling: float,
    start: int,
    stop: int,
    positions: Sequence[int],
    limits: Callable[[Tensor], Tensor],
    units: Sequence[int],
    *,
    form: LogitForm = PLAIN,
    backend: str = "auto",
) -> tuple[Tensor, list[Tensor]]:
    """Order statistics of the observation window's probabilities, and hits above limits that are
    made from them; exact beyond 2^24 values.

    A row (sequence, KV head) has the window * (stop - start) probabilities of
    :func:`catekv.kernels.window_scores.window_attention`.

    Args:
        queries, keys, scaling, start, stop, form: as in :func:`window_scores`.
        positions: which order statistics, counted from the smallest value (0).
        limits: makes fp32 [rows, len(units)] from the statistics fp32 [rows, len(positions)]: the
            least value that is a hit, at least 0.
        units: tokens per unit of each limit. A query hits a unit if its largest value reaches the
            limit.
        backend: ``auto`` or one of ``backends("window_statistics")``.

    Returns:
        The statistics, fp32 [batch, kv_heads, len(positions)], and for each limit the queries that
        hit each unit, an integer tensor [batch, kv_heads, ceil((stop - start) / unit)].
    """
    unsupported = why_no_window_kernel(queries, keys, max(units, default=1), form)
    function = choose("window_statistics", keys.device, backend, unsupported=unsupported)
    result: tuple[Tensor, list[Tensor]] = function(
        queries, keys, scaling, start, stop, positions, limits, units, form
    )
    return result


def column_sums(
    queries: Tensor,
    keys: Tensor,
    scaling: float,
    valid: Tensor | None = None,
    form: LogitForm = PLAIN,
) -> Tensor:
    """Attention that every key receives, summed over the queries: float32 [batch, query_heads,
    tokens]; arguments as in :func:`catekv.kernels.column_sums.column_sums_torch`."""
    sums: Tensor = choose("column_sums", keys.device)(queries, keys, scaling, valid, form)
    return sums


def page_bounds(prefix: RaggedPrefix, size: int, *, backend: str = "auto") -> PageBounds:
    """Smallest and largest key of every page of ``size`` entries, for :func:`page_scores`.

    Made once: a prefix never changes. A logit bias of merged entries is not part of the bounds.

    Args:
        prefix: what is kept of the context.
        size: entries per page.
        backend: ``auto`` or one of ``backends("page_bounds")``.
    """
    function = choose("page_bounds", prefix.keys.device, backend)
    result: PageBounds = function(prefix, size)
    return result


def page_scores(
    queries: Tensor, bounds: PageBounds, reduction: str = "max", *, backend: str = "auto"
) -> Tensor:
    """Upper bounds of the products of queries with the keys of every page (Quest).

    ``sum over dimensions of max(q * high, q * low)``, without the factor of the logits. Nothing
    waits for the device.

    Args:
        queries: [batch, query_heads, query_tokens, head_dim].
        bounds: of the prefix that the queries read.
        reduction: ``max``, ``mean`` or ``sum`` over the query heads of a group and the tokens.
        backend: ``auto`` or one of ``backends("page_scores")``.

    Returns:
        fp32 [batch, kv_heads, pages], -inf for pages that a row does not have.

    Raises:
        UserError: an unknown reduction or backend.
    """
    if reduction not in REDUCTIONS:
        raise UserError(f"unknown reduction {reduction!r}; use {', '.join(REDUCTIONS)}")
    unsupported = None
    if queries.stride(-1) != 1:
        unsupported = "a query's numbers do not lie behind each other in memory"
    function = choose("page_scores", queries.device, backend, unsupported=unsupported)
    result: Tensor = function(queries, bounds, reduction)
    return result


def copy(destination: Tensor, source: Tensor, *, backend: str = "auto") -> None:
    """Copy one tensor to another of the same shape and dtype, the yardstick of bandwidth.

    Every byte is read once and written once.
    """
    unsupported = why_no_copy_kernel(destination, source)
    function = choose("copy", source.device, backend, unsupported=unsupported)
    function(destination, source)
