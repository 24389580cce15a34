"""Whether a model's attention can be compressed, found out by running it on a few tokens."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, DynamicCache

from catekv.cache.attention import Handle, watched
from catekv.cache.cache import RaggedCache
from catekv.cache.continuation import continues_by
from catekv.errors import UserError
from catekv.methods.base import Needs
from catekv.models.compat import attention_sizes, cache_argument, input_device, text_config
from catekv.models.finite import refuse_not_finite
from catekv.models.own_attention import refuse_sparse_attention, why_unobserved
from catekv.models.shape import ModelShape
from catekv.models.sharding import is_sharded


@dataclass(frozen=True)
class Traits:
    """What was found out about a model when it was loaded.

    Attributes:
        shape: its layers and heads as they really are.
        continues_by: how it may be fed behind a cache: :data:`catekv.cache.continuation.CHUNKS`
            (``"chunks"``: any number of tokens in one forward) or
            :data:`catekv.cache.continuation.SINGLE_TOKENS` (``"single tokens"``: recurrent layers
            that lose their state otherwise). :func:`catekv.cache.continuation.feed` honours it.
    """

    shape: ModelShape
    continues_by: str


def examine(model: Any) -> Traits:
    """Try a model with catekv attention: what it hands to attention, and how it goes on.

    Raises:
        UserError: if the model cannot be compressed, with the reason.
    """
    return Traits(probe(model), continues_by(model))


class _Calls:
    """The attention calls of one forward, checked against what the cache layers stored."""

    def __init__(self) -> None:
        self.fault: str | None = None
        # attention modules, and whether a call of theirs met a layer's keys
        self.modules: dict[int, bool] = {}

    def see(self, module: torch.nn.Module, handle: Handle | None, values: Tensor) -> None:
        known = id(module) in self.modules
        met = self.modules.get(id(module), False) or handle is not None
        self.modules[id(module)] = met
        name = type(module).__name__
        if known and met:
            self.fault = f"{name} calls attention more than once per cache update"
        elif handle is not None and not _same(handle.values, values):
            self.fault = f"{name} attends with other values than it gave to the cache"


def _same(stored: Tensor, used: Tensor) -> bool:
    if stored.shape != used.shape or stored.device.type == "meta":
        return stored.shape == used.shape
    return stored is used or torch.equal(stored, used)


@torch.no_grad()
def _takes_any_cache(model: Any, ids: Tensor) -> bool:
    cache = DynamicCache(config=model.config)
    try:
        model(ids, **cache_argument(model, cache), use_cache=True)
    except Exception:
        # what it is makes no difference: the model's own cache is another one
        return False
    return True


@torch.no_grad()
def _one_token(model: Any, cache: RaggedCache, calls: _Calls) -> torch.Tensor:
    """Logits of a forward over one token, whose calls of attention ``calls`` sees.

    Raises:
        UserError: the forward fails.
    """
    name = type(model).__name__
    ids = torch.zeros(1, 1, dtype=torch.long, device=input_device(model))
    try:
        with watched(calls.see):
            output = model(ids, **cache_argument(model, cache), use_cache=True, logits_to_keep=1)
    except UserError:
        raise
    except Exception as error:
        if not _takes_any_cache(model, ids):
            raise UserError(
                f"{name} is not supported: it runs with a kind of cache of its own only, not "
                "with transformers' DynamicCache either; it would need model code that keeps "
                "keys, values and states in the layers of the cache that it is given"
            ) from error
        raise UserError(f"{name} does not run with a compressed cache: {error}") from error
    logits: torch.Tensor = output.logits
    return logits


def probe(model: Any) -> ModelShape:
    """Check with a one-token forward that every layer's keys reach our attention function.

    Returns:
        The shape of the model, as its attention layers really are.

    Raises:
        UserError: if the architecture cannot be compressed, with the reason.
    """
    name = type(model).__name__
    refuse_sparse_attention(model)
    cache = RaggedCache(model.config, None, hold=Needs(window=1))
    layers = cache.ragged_layers
    if not any(isinstance(layer, CacheLayerMixin) for layer in cache.layers):
        raise UserError(f"{name} is not supported: it has no attention layers with a cache")
    calls = _Calls()
    logits = _one_token(model, cache, calls)
    refuse_not_finite(logits[:, -1], f"{name} answers one token")
    fed = [layer for layer in layers if layer.seen]
    deaf = [layer.index for layer in fed if layer.pending]
    if deaf or (layers and not fed):
        raise UserError(
            f"{name} is not supported: {why_unobserved(model, bool(calls.modules), deaf)}"
        )
    if calls.fault is not None:
        raise UserError(f"{name} is not supported: {calls.fault}; run it with its ordinary cache")
    config = text_config(model.config)
    if not fed:
        warnings.warn(
            f"{name} has no layer with full attention, so nothing will be compressed", stacklevel=4
        )
        named = attention_sizes(config)
        return ModelShape(config.num_hidden_layers, *named, config_hash=cache.config_hash)
    found = {(layer.query_heads, *layer.buffer.views()[0].shape[1::2]) for layer in fed}
    if len(found) > 1:
        sizes = "; ".join("{} query heads, {} KV heads of {}".format(*one) for one in sorted(found))
        raise UserError(
            f"{name} is not supported: its full-attention layers differ in size ({sizes}), and "
            "budgets and masks are made for one size; it needs the ordinary cache"
        )
    keys, _ = fed[0].buffer.views()
    kv_heads, query_heads = keys.shape[1], fed[0].query_heads
    if is_sharded(kv_heads, cache.settings.kv_heads):
        # this process holds some of the heads; the shape is that of the whole model
        query_heads, kv_heads, _ = attention_sizes(config, fed[0].index)
    return ModelShape(
        config.num_hidden_layers, query_heads, kv_heads, keys.shape[-1], cache.config_hash
    )
