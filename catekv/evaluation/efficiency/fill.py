"""Compressed caches full of random entries: decode speed at a length without reading a prompt.

The rows have the lengths that the method would have kept of a real prompt, in the same order in
memory, and positions go on from the context's length. What a step costs does not depend on the
values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from catekv.cache.cache import RaggedCache, uncompressed_layers
from catekv.cache.layer import RaggedLayer
from catekv.errors import UserError
from catekv.kernels.ragged import RaggedPrefix, from_rows, storage_order
from catekv.methods.base import Method
from catekv.methods.stores import stored as stored_as
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
        return method.for_prompt(tokens, model.shape).budget_table(tokens, model.shape)
    except UserError as error:
        raise UserError(f"{error}; measure it with --fill prefill") from error


def random_prefix(
    lengths: list[int],
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: Any,
    seed: int = 0,
    stored: tuple[Tensor, Tensor] | None = None,
) -> RaggedPrefix:
    """A layer's prefix of rows of these lengths ((sequence, KV head) order) with random entries.

    ``stored``: keys and values [entries, head_dim] whose first entries to use instead of new ones.
    """
    _, rows = storage_order(lengths)
    entries = sum(lengths)
    keys, values = stored or random_entries(entries, head_dim, dtype, device, seed)
    return from_rows(keys[:entries], values[:entries], None, rows, kv_heads)


def random_entries(
    entries: int, head_dim: int, dtype: torch.dtype, device: Any, seed: int
) -> tuple[Tensor, Tensor]:
    """Random keys and values, [entries, head_dim]."""
    shape = (entries, head_dim)
    keys = fill_random_(torch.empty(shape, dtype=dtype, device=device), seed)
    return keys, fill_random_(torch.empty(shape, dtype=dtype, device=device), seed + 1)


def refuse_other_layers(model: CateKVModel) -> None:
    """``UserError`` for a model some of whose layers no random entries can fill."""
    others = uncompressed_layers(model.config)
    if others:
        raise UserError(
            f"{others} cannot be filled at random, transformers keeps them in its own way; use "
            "--fill prefill"
        )


def random_cache(
    model: CateKVModel,
    method: Method,
    tokens: int,
    batch: int = 1,
    seed: int = 0,
    distinct: int | None = None,
) -> RaggedCache:
    """What ``method`` would leave of prompts of ``tokens`` tokens, with random entries.

    Args:
        distinct: layers that have memory of their own; layer ``i`` reads that of layer
            ``i % distinct``. None: all.

    Raises:
        UserError: the method's budgets depend on the prompt, it works on entries while decoding, or
            a layer of the model is no ordinary full-attention layer.
    """
    refuse_other_layers(model)
    table = kept_lengths(model, method, tokens)
    if method.own_store:
        raise UserError(
            f"{method.name} chooses or changes entries while decoding, which random ones do not "
            "show; measure it with --fill prefill"
        )
    cache = RaggedCache(model.config, method, tokens)
    most = int(table.sum(dim=-1).max()) * batch
    shared: dict[int, tuple[Tensor, Tensor]] = {}
    for index, (layer, block) in enumerate(
        zip(cache.layers, decoder_layers(model.model), strict=True)
    ):
        assert isinstance(layer, RaggedLayer)
        device = next(block.parameters()).device
        head_dim, dtype, own_seed = model.shape.head_dim, model.dtype, seed + 2 * index
        if distinct is not None and index < distinct:
            shared[index] = random_entries(most, head_dim, dtype, device, own_seed)
        prefix = random_prefix(
            table[index].tolist() * batch,
            model.shape.kv_heads,
            head_dim,
            dtype,
            device,
            own_seed,
            None if distinct is None else shared[index % distinct],
        )
        layer.lazy_initialization(prefix.keys, prefix.values)
        layer.seen, layer.query_heads = tokens, model.shape.query_heads
        layer.scaling = model.shape.head_dim**-0.5
        layer.hold(prefix, stored_as(method.store, prefix))
    return cache
