"""Decode attention over a ragged prefix and a dense tail: the definition and the torch path."""

from __future__ import annotations

import torch
from torch import Tensor

from catekv.kernels.workspace import Workspace
from catekv.layout import BlockList, Bucket, RaggedPrefix

#: Upper bound of the logits held at once on the torch path, in elements (256 MiB of float32).
MAX_LOGITS = 1 << 26


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
    prefix: RaggedPrefix,
    tail_keys: Tensor,
    tail_values: Tensor,
    scaling: float,
    tail_mask: Tensor | None = None,
    tail_length: Tensor | None = None,
    blocks: BlockList | None = None,
    workspace: Workspace | None = None,
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
                logits = queries[b, query_head].to(dtype) @ keys.T * scaling
                if row_bias is not None:
                    logits[:, : len(row_keys)] += row_bias.to(dtype)
                logits = logits.masked_fill(~visible, torch.finfo(dtype).min)
                output[b, query_head] = (logits.softmax(dim=-1) @ values).to(output.dtype)
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
    bucket = Bucket(slot.shape[1], torch.arange(rows, device=device)[:, None], None)
    return bucket, (prefix.keys[slot], prefix.values[slot], bias)


def _read(prefix: RaggedPrefix, bucket: Bucket) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys, values [rows, length, dim] and additive logits [rows, length] or None of a bucket."""
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


def _joint(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    scaling: float,
    own: Tensor,
    own_values: Tensor,
) -> Tensor:
    """One softmax over a bucket's entries and the tail.

    Args:
        queries: [stored rows, queries of a row, head_dim].
        keys, values: [stored rows, length, dim]; bias: [stored rows, length] or None.
        own: logits over the tail, [rows, queries of a row, tail]; own_values: [rows, tail, dim].
    """
    logits = _product(queries, keys.transpose(1, 2)) * scaling
    if bias is not None:
        logits = logits + bias[:, None]
    weights = torch.cat([logits.view(*own.shape[:2], -1), own], dim=-1)
    weights = weights.softmax(dim=-1, dtype=torch.promote_types(own.dtype, torch.float32))
    weights = weights.to(values.dtype)
    seen, own_seen = weights.split([keys.shape[1], own.shape[2]], dim=-1)
    own_result = torch.bmm(own_seen, own_values)
    result = torch.bmm(seen.reshape(*queries.shape[:2], keys.shape[1]), values)
    return result.view(own_result.shape) + own_result


def _fused_serves(keys: Tensor, values: Tensor, bias: Tensor | None) -> bool:
    """Whether :func:`_fused` takes a bucket: on a CPU, with entries and without a bias."""
    return (
        keys.device.type == "cpu"
        and keys.shape[1] > 0
        and bias is None
        and keys.shape[-1] == values.shape[-1]
    )


def _fused(
    queries: Tensor, keys: Tensor, values: Tensor, scaling: float, own: Tensor, own_values: Tensor
) -> Tensor:
    """As :func:`_joint`: torch's FlashAttention for CPUs over the bucket, which takes about three
    quarters of the time of two products and a softmax, and its sum of exponentials to weigh it with
    the tail."""
    seen, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        queries[None], keys[None], values[None], scale=scaling
    )
    wide = torch.promote_types(own.dtype, torch.float32)
    own_log = own.logsumexp(dim=-1, keepdim=True).to(wide)
    own_result = torch.bmm((own - own_log).exp().to(own_values.dtype), own_values)
    share = torch.sigmoid(log_sum[0].reshape(own_log.shape) - own_log)
    return torch.lerp(own_result.to(wide), seen[0].reshape(own_result.shape).to(wide), share)


def ragged_decode_torch(
    queries: Tensor,
    prefix: RaggedPrefix,
    tail_keys: Tensor,
    tail_values: Tensor,
    scaling: float,
    tail_mask: Tensor | None = None,
    tail_length: Tensor | None = None,
    blocks: BlockList | None = None,
    workspace: Workspace | None = None,
) -> Tensor:
    """Vectorised path: one attention per bucket of rows, over its entries and the tail.

    Keys and values of rows with equal lengths are read where they lie; nothing is concatenated to
    them. Arguments as in :func:`catekv.kernels.ragged_decode`.
    """
    batch, query_heads, query_tokens, head_dim = queries.shape
    kv_heads, tail = tail_keys.shape[1:3]
    group = query_heads // kv_heads
    rows = batch * kv_heads
    tail_mask = visible_tail(query_tokens, tail, tail_mask, tail_length, queries.device)
    value_dim = tail_values.shape[-1]
    output = queries.new_empty(rows, group, query_tokens, value_dim)
    per_row = queries.reshape(rows, group, query_tokens, head_dim)
    row_tail_keys = tail_keys.reshape(rows, tail, head_dim)
    row_tail_values = tail_values.reshape(rows, tail, value_dim)
    if tail_mask is not None:
        tail_mask = tail_mask.expand(batch, 1, query_tokens, tail)

    parts = (
        ((bucket, _read(prefix, bucket)) for bucket in prefix.buckets)
        if blocks is None
        else iter([_read_blocks(prefix, blocks)])
    )
    for bucket, (keys, values, bias) in parts:
        stored, readers = bucket.query_rows.shape
        flat_rows = bucket.query_rows.flatten()
        own_keys, own_values = row_tail_keys[flat_rows], row_tail_values[flat_rows]
        own_mask = None if tail_mask is None else tail_mask[flat_rows // kv_heads]
        own_queries = per_row[flat_rows]
        step = max(1, MAX_LOGITS // max(1, len(flat_rows) * group * (bucket.length + tail)))
        for start in range(0, query_tokens, step):
            part = own_queries[:, :, start : start + step]
            size = part.shape[2]
            # readers of one stored row are further queries of it: [stored, readers * group * size]
            shared = (stored, readers * group * size)
            single = (len(flat_rows), group * size)
            own = _product(part.reshape(*single, head_dim), own_keys.transpose(1, 2))
            own = (own * scaling).view(len(flat_rows), group, size, tail)
            if own_mask is not None:
                own = own.masked_fill(
                    ~own_mask[:, :, start : start + step], torch.finfo(own.dtype).min
                )
            own = own.view(*single, tail)
            over_prefix = part.reshape(*shared, head_dim)
            if _fused_serves(keys, values, bias):
                result = _fused(over_prefix, keys, values, scaling, own, own_values)
            else:
                result = _joint(over_prefix, keys, values, bias, scaling, own, own_values)
            result = result.view(len(flat_rows), group, size, value_dim)
            output[flat_rows, :, start : start + step] = result.to(output.dtype)
    return output.view(batch, query_heads, query_tokens, value_dim)
