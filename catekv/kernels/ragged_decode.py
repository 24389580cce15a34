"""Decode attention over a ragged prefix and a dense tail: the definition and the torch path."""

from __future__ import annotations

import torch
from torch import Tensor

from catekv.kernels.logits import PLAIN, LogitForm, softmax_with_sink
from catekv.kernels.quantised import QuantisedPrefix
from catekv.kernels.ragged import BlockList, Bucket, RaggedPrefix
from catekv.kernels.workspace import Workspace

#: Upper bound of the logits held at once on the torch path, in elements (256 MiB of float32).
MAX_LOGITS = 1 << 26
#: A row is cut into at most so many shares for the threads of a CPU.
MAX_SHARES = 8


def causal_tail_mask(query_tokens: int, tail: int, device: torch.device) -> Tensor:
    """bool [1, 1, query_tokens, tail]: lower-right causal, the last query sees the whole tail."""
    rows = torch.arange(tail - query_tokens, tail, device=device)[:, None]
    return (torch.arange(tail, device=device) <= rows)[None, None]


#: What the triton kernel is built for; anything else takes the torch path.
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
KERNEL_HEAD_DIM = 256


def why_no_decode_kernel(queries: Tensor, prefix: RaggedPrefix, tail_keys: Tensor) -> str | None:
    """Why the triton kernel cannot take these tensors; None if it can."""
    if queries.dtype not in KERNEL_DTYPES:
        return f"it computes with float32, float16 and bfloat16, not with {queries.dtype}"
    if not queries.dtype == prefix.keys.dtype == tail_keys.dtype:
        return f"queries are {queries.dtype}, stored keys {prefix.keys.dtype}"
    largest = max(queries.shape[-1], prefix.values.shape[-1])
    if largest > KERNEL_HEAD_DIM:
        return f"heads of {largest} dimensions are more than {KERNEL_HEAD_DIM}"
    return None


def visible_tail(
    query_tokens: int,
    tail: int,
    tail_mask: Tensor | None,
    tail_length: Tensor | None,
    device: torch.device,
) -> Tensor | None:
    """bool [batch or 1, 1, query_tokens, tail]: what each query sees of the tail; None: all."""
    if tail_length is None:
        if tail_mask is None and query_tokens == 1:
            return None
        causal = causal_tail_mask(query_tokens, tail, device)
    else:
        last = tail_length - query_tokens + torch.arange(query_tokens, device=device)
        causal = (torch.arange(tail, device=device) <= last[:, None])[None, None]
    return causal if tail_mask is None else causal & tail_mask


def ragged_decode_reference(
    queries: Tensor,
    prefix: RaggedPrefix | QuantisedPrefix,
    tail_keys: Tensor,
    tail_values: Tensor,
    scaling: float,
    tail_mask: Tensor | None = None,
    tail_length: Tensor | None = None,
    blocks: BlockList | None = None,
    workspace: Workspace | None = None,
    form: LogitForm = PLAIN,
) -> Tensor:
    """The definition, row by row in float32 (float64 for float64 input); arguments as in
    :func:`catekv.kernels.ragged_decode`."""
    batch, query_heads, query_tokens, _ = queries.shape
    kv_heads, tail = tail_keys.shape[1:3]
    group = query_heads // kv_heads
    dtype = torch.promote_types(queries.dtype, torch.float32)
    seen = visible_tail(query_tokens, tail, tail_mask, tail_length, queries.device)
    if seen is None:
        seen = torch.ones(1, 1, query_tokens, tail, dtype=torch.bool, device=queries.device)
    seen = seen.expand(batch, 1, query_tokens, tail)
    output = queries.new_zeros(batch, query_heads, query_tokens, tail_values.shape[-1])
    for b in range(batch):
        for head in range(kv_heads):
            row_keys, row_values, row_bias = prefix.row(b, head)
            if blocks is not None:
                chosen = blocks.tokens(b * kv_heads + head, len(row_keys))
                row_keys, row_values = row_keys[chosen], row_values[chosen]
                row_bias = None if row_bias is None else row_bias[chosen]
            keys = torch.cat([row_keys, tail_keys[b, head]]).to(dtype)
            values = torch.cat([row_values, tail_values[b, head]]).to(dtype)
            visible = torch.cat([seen.new_ones(query_tokens, len(row_keys)), seen[b, 0]], dim=-1)
            for query_head in range(head * group, (head + 1) * group):
                logits = form.cap_(queries[b, query_head].to(dtype) @ keys.T * scaling)
                if row_bias is not None:
                    logits[:, : len(row_keys)] += row_bias.to(dtype)
                logits = logits.masked_fill(~visible, torch.finfo(dtype).min)
                sink = form.sinks_of(query_head, query_head + 1, dtype)
                weights = softmax_with_sink(logits, sink)
                output[b, query_head] = (weights @ values).to(output.dtype)
    return output


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Batched matrix product; half-precision logits on a GPU are kept in float32."""
    if left.is_cuda and left.dtype in (torch.float16, torch.bfloat16):
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(left, right)


def _read_blocks(
    prefix: RaggedPrefix, blocks: BlockList
) -> tuple[Bucket, tuple[Tensor, Tensor, Tensor | None]]:
    """All rows as one gathered bucket that holds the listed blocks only."""
    rows = blocks.indices.shape[0]
    device = prefix.keys.device
    inner = torch.arange(blocks.size, device=device)
    token = (blocks.indices.long()[..., None] * blocks.size + inner).view(rows, -1)
    listed = torch.arange(blocks.indices.shape[1], device=device) < blocks.counts[:, None]
    inside = listed.repeat_interleave(blocks.size, dim=1) & (token >= 0)
    inside &= token < prefix.lengths.view(rows, 1)
    slot = (prefix.offsets.view(rows, 1) + token).clamp_(min=0, max=max(0, prefix.slots - 1))
    if prefix.slots == 0:
        slot = slot[:, :0]
        inside = inside[:, :0]
    bias = torch.zeros(inside.shape, dtype=torch.float32, device=device)
    if prefix.bias is not None:
        bias = prefix.bias[slot]
    bias = bias.masked_fill(~inside, torch.finfo(torch.float32).min)
    every = torch.arange(rows, device=device)[:, None]
    bucket = Bucket(slot.shape[1], every, None, in_order=True)
    return bucket, (prefix.keys[slot], prefix.values[slot], bias)


def _read(
    prefix: RaggedPrefix | QuantisedPrefix, bucket: Bucket, workspace: Workspace | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys, values [rows, length, dim] and additive logits [rows, length] or None of a bucket."""
    if isinstance(prefix, QuantisedPrefix):
        return prefix.read(bucket, workspace)
    rows, length = bucket.query_rows.shape[0], bucket.length
    if bucket.start is not None:
        block = slice(bucket.start, bucket.start + rows * length)
        bias = None if prefix.bias is None else prefix.bias[block].view(rows, length)
        return (
            prefix.keys[block].view(rows, length, prefix.keys.shape[-1]),
            prefix.values[block].view(rows, length, prefix.values.shape[-1]),
            bias,
        )
    assert bucket.offsets is not None
    assert bucket.lengths is not None
    position = torch.arange(length, device=prefix.keys.device)
    inside = position < bucket.lengths[:, None]
    slot = (bucket.offsets[:, None] + position).clamp_(max=prefix.slots - 1)
    bias = torch.zeros(inside.shape, dtype=torch.float32, device=slot.device)
    if prefix.bias is not None:
        bias = prefix.bias[slot]
    bias = bias.masked_fill(~inside, torch.finfo(torch.float32).min)
    return prefix.keys[slot], prefix.values[slot], bias


def _shares(rows: int, length: int) -> int:
    """Equal shares to cut every row into, so that all threads get the same work: FlashAttention
    gives a row to one thread."""
    threads = torch.get_num_threads()
    for shares in range(1, MAX_SHARES + 1):
        even = rows * shares % threads == 0 or rows * shares >= 4 * threads
        if even and length % shares == 0:
            return shares
    return 1


def _flash(
    queries: Tensor, keys: Tensor, values: Tensor, scaling: float, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """torch's FlashAttention for CPUs; takes about three quarters of the time of two products and
    a softmax, and returns the sums of exponentials that partial results are combined with.

    Arguments [batch, heads, tokens, dim], ``mask`` additive and broadcast; the result and its
    log-sum-exp [batch, heads, query tokens].
    """
    result, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        queries, keys, values, attn_mask=mask, scale=scaling
    )
    return result, log_sum


def _products(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scaling: float,
    extra: Tensor | None,
    form: LogitForm,
) -> tuple[Tensor, Tensor]:
    """The same by two products, arguments [rows, tokens, dim]; ``extra`` is added to the logits
    [rows, query tokens, tokens]."""
    logits = _product(queries, keys.transpose(1, 2)) * scaling
    logits = form.cap_(logits.to(torch.promote_types(logits.dtype, torch.float32)))
    if extra is not None:
        logits = logits + extra
    log_sum = logits.logsumexp(dim=-1)
    return torch.bmm((logits - log_sum[..., None]).exp().to(values.dtype), values), log_sum


def _over_tail(
    queries: Tensor,
    tail_keys: Tensor,
    tail_values: Tensor,
    scaling: float,
    visible: Tensor | None,
    form: LogitForm,
) -> tuple[Tensor, Tensor]:
    """Attention of all rows over the tail alone.

    Args:
        queries: [batch, kv_heads, group, query_tokens, head_dim].
        visible: bool [batch or 1, 1, query_tokens, tail] or None.

    Returns:
        [rows, group * query_tokens, value_dim] and the log-sum-exp without the last dimension.
    """
    batch, kv_heads, group, count, head_dim = queries.shape
    mask = None
    if visible is not None:
        kind = queries.dtype
        mask = torch.zeros(visible.shape, dtype=kind, device=queries.device)
        # not infinite: a padded query may see nothing
        mask = mask.masked_fill_(~visible, torch.finfo(kind).min).repeat(1, 1, group, 1)
    if _flash_serves(tail_keys, tail_values, form):
        flat = queries.reshape(batch, kv_heads, group * count, head_dim)
        result, log_sum = _flash(flat, tail_keys, tail_values, scaling, mask)
        return result.flatten(0, 1), log_sum.flatten(0, 1)
    if mask is not None:
        mask = mask.expand(batch, kv_heads, *mask.shape[2:]).flatten(0, 1)
    flat = queries.reshape(batch * kv_heads, group * count, head_dim)
    return _products(flat, tail_keys.flatten(0, 1), tail_values.flatten(0, 1), scaling, mask, form)


def _over_bucket(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scaling: float,
    bias: Tensor | None,
    form: LogitForm,
) -> tuple[Tensor, Tensor]:
    """Attention of stored rows over their entries, in shares.

    Args:
        queries: [rows, queries of a row, head_dim]. keys, values: [rows, length, dim].
        bias: [rows, length] or None.

    Returns:
        [rows, shares, queries of a row, value_dim] and the log-sum-exp without the last dimension.
    """
    rows, count, head_dim = queries.shape
    if bias is not None or not _flash_serves(keys, values, form):
        extra = None if bias is None else bias[:, None]
        result, log_sum = _products(queries, keys, values, scaling, extra, form)
        return result[:, None], log_sum[:, None]
    shares = _shares(rows, keys.shape[1])
    result, log_sum = _flash(
        queries[:, None].expand(rows, shares, count, head_dim).reshape(1, -1, count, head_dim),
        keys.view(1, rows * shares, -1, head_dim),
        values.view(1, rows * shares, -1, values.shape[-1]),
        scaling,
        None,
    )
    return result.view(rows, shares, count, -1), log_sum.view(rows, shares, count)


def _flash_serves(keys: Tensor, values: Tensor, form: LogitForm) -> bool:
    if form.softcap is not None:
        return False
    return keys.device.type == "cpu" and keys.shape[-2] > 0 and keys.shape[-1] == values.shape[-1]


def _combined(
    found: Tensor, logs: Tensor, own: Tensor, own_logs: Tensor, sinks: Tensor | None
) -> Tensor:
    """What the parts of some rows give together, weighted by their sums of exponentials.

    Args:
        found: [rows, shares, queries of a row, value_dim]; logs: the log-sum-exp of each.
        own: [rows, queries of a row, value_dim], the tail's part; own_logs: its log-sum-exp.
        sinks: [rows, 1, queries of a row], logits of one more part whose values are zero, or None.

    Returns:
        [rows, queries of a row, value_dim].
    """
    if sinks is None and found.shape[1] == 1:
        # the softmax over two parts; three small operations count where a step has little to read
        return torch.lerp(found[:, 0], own, (own_logs - logs[:, 0]).sigmoid()[..., None])
    logs = torch.cat([logs, own_logs[:, None]], dim=1)
    if sinks is not None:
        logs = torch.cat([logs, sinks.to(logs.dtype)], dim=1)
    both = torch.cat([found, own[:, None]], dim=1)
    return (both * logs.softmax(dim=1)[:, : both.shape[1], :, None]).sum(dim=1)


def _sinks_per_query(form: LogitForm, grouped: Tensor) -> Tensor | None:
    """[rows, group, query_tokens] for queries [batch, kv_heads, group, query_tokens, head_dim]."""
    if form.sinks is None:
        return None
    heads = form.sinks.view(1, *grouped.shape[1:3], 1)
    return heads.expand(grouped.shape[:-1]).flatten(0, 1)


def ragged_decode_torch(
    queries: Tensor,
    prefix: RaggedPrefix | QuantisedPrefix,
    tail_keys: Tensor,
    tail_values: Tensor,
    scaling: float,
    tail_mask: Tensor | None = None,
    tail_length: Tensor | None = None,
    blocks: BlockList | None = None,
    workspace: Workspace | None = None,
    form: LogitForm = PLAIN,
) -> Tensor:
    """Vectorised path: one attention over the tail, one per bucket of rows, combined by their sums
    of exponentials.

    Keys and values of rows with equal lengths are read where they lie; nothing is concatenated to
    them. Arguments as in :func:`catekv.kernels.ragged_decode`.
    """
    batch, query_heads, query_tokens, head_dim = queries.shape
    kv_heads, tail = tail_keys.shape[1:3]
    group = query_heads // kv_heads
    rows = batch * kv_heads
    value_dim = tail_values.shape[-1]
    visible = visible_tail(query_tokens, tail, tail_mask, tail_length, queries.device)
    grouped = queries.reshape(batch, kv_heads, group, query_tokens, head_dim)
    output = queries.new_empty(rows, group, query_tokens, value_dim)
    longest = max((bucket.length for bucket in prefix.buckets), default=0)
    step = max(1, MAX_LOGITS // (rows * group * (longest + tail)))
    pieces = []
    for start in range(0, query_tokens, step):
        part = grouped[:, :, :, start : start + step]
        seen = None if visible is None else visible[:, :, start : start + step]
        own, own_log = _over_tail(part, tail_keys, tail_values, scaling, seen, form)
        pieces.append((start, part.reshape(rows, -1, head_dim), own, own_log))
    wide = torch.promote_types(queries.dtype, torch.float32)
    sinks = _sinks_per_query(form, grouped)
    parts = (
        ((bucket, _read(prefix, bucket, workspace)) for bucket in prefix.buckets)
        if blocks is None or isinstance(prefix, QuantisedPrefix)
        else iter([_read_blocks(prefix, blocks)])
    )
    for bucket, (keys, values, bias) in parts:
        stored = bucket.query_rows.shape[0]
        readers: Tensor | slice = slice(None) if bucket.in_order else bucket.query_rows.flatten()
        for start, per_row, own, own_log in pieces:
            # readers of one stored row are further queries of it
            shared = per_row[readers].reshape(stored, -1, head_dim)
            found, log_sums = _over_bucket(shared, keys, values, scaling, bias, form)
            own_sinks = None
            if sinks is not None:
                own_sinks = sinks[readers, :, start : start + step].reshape(stored, 1, -1)
            result = _combined(
                found.to(wide),
                log_sums,
                own[readers].view(stored, -1, value_dim).to(wide),
                own_log[readers].view(stored, -1),
                own_sinks,
            )
            result = result.view(bucket.query_rows.numel(), group, -1, value_dim)
            output[readers, :, start : start + step] = result.to(output.dtype)
    return output.view(batch, query_heads, query_tokens, value_dim)
