"""Compressed caches full of random entries: decode speed at a length without reading a prompt.

The rows have the lengths that the method would have kept of a real prompt, in the same order in
memory, and positions go on from the context's length. What a step costs does not depend on the
values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from catekv.cache import plain_layers
from catekv.cache.cache import RaggedCache
from catekv.cache.layer import RaggedLayer
from catekv.errors import UserError
from catekv.kernels.ragged import RaggedPrefix, from_rows, storage_order
from catekv.methods.base import Method
from catekv.model import CateKVModel
from catekv.models.compat import decoder_layers

#: Numbers drawn per tensor; the rest repeats them, so that a cache of 60 GiB takes no minute.
DRAWN = 1 << 22


def fill_random_(tensor: Tensor, seed: int = 0) -> Tensor:
    """Fill a contiguous tensor with normal numbers in place, without temporary memory."""
    flat = tensor.view(-1)
    done = min(DRAWN, flat.numel())
    generator = torch.Generator(tensor.device).manual_seed(seed)
    flat[:done].normal_(generator=generator)
    while done < flat.numel():
        more = min(done, flat.numel() - done)
        flat[done : done + more].copy_(flat[:more])
        done += more
    return tensor


def kept_lengths(model: CateKVModel, method: Method, tokens: int) -> Tensor:
    """Entries per row after a prompt of ``tokens`` tokens, int64 [layers, kv_heads].

    Raises:
        UserError: the method decides by the prompt's content.
    """
    try:
        return method.budget_table(tokens, model.shape)
    except UserError as error:
        raise UserError(f"{error}; measure it with --fill prefill") from error


def random_prefix(
    lengths: list[int], kv_heads: int, head_dim: int, dtype: torch.dtype, device: Any, seed: int = 0
) -> RaggedPrefix:
    """A layer's prefix of rows of these lengths ((sequence, KV head) order) with random entries."""
    _, rows = storage_order(lengths)
    shape = (sum(lengths), head_dim)
    keys = fill_random_(torch.empty(shape, dtype=dtype, device=device), seed)
    values = fill_random_(torch.empty(shape, dtype=dtype, device=device), seed + 1)
    return from_rows(keys, values, None, rows, kv_heads)


def random_cache(
    model: CateKVModel, method: Method, tokens: int, batch: int = 1, seed: int = 0
) -> RaggedCache:
    """What ``method`` would leave of prompts of ``tokens`` tokens, with random entries.

    Raises:
        UserError: the method's budgets depend on the prompt, or a layer of the model is no ordinary
            full-attention layer.
    """
    table = kept_lengths(model, method, tokens)
    cache = RaggedCache(model.config, method, tokens)
    for index, (layer, block) in enumerate(
        zip(cache.layers, decoder_layers(model.model), strict=True)
    ):
        if not isinstance(layer, RaggedLayer):
            raise UserError(
                f"{plain_layers.described(cache.layers, [index])} is not compressed and cannot be "
                "filled at random; use --fill prefill"
            )
        device = next(block.parameters()).device
        prefix = random_prefix(
            table[index].tolist() * batch,
            model.shape.kv_heads,
            model.shape.head_dim,
            model.dtype,
            device,
            seed + 2 * index,
        )
        layer.lazy_initialization(prefix.keys, prefix.values)
        layer.seen, layer.query_heads = tokens, model.shape.query_heads
        layer.scaling = model.shape.head_dim**-0.5
        layer.prefix = prefix
    return cache
