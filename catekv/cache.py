"""A transformers cache whose full-attention layers store a different length in every row.

A layer is *dense* while the prompt comes in; at the context boundary its method chooses what to
keep, the rest is freed, and from then on the layer is a ragged prefix plus a dense tail of
everything fed since. Positions always continue from the true number of tokens seen.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer

from catekv.attention import HANDLE, Handle
from catekv.errors import UserError
from catekv.head_mask import config_hash
from catekv.layout import RaggedPrefix, from_rows, pack, pack_merged, storage_bytes
from catekv.methods.base import Method, Observed
from catekv.sharding import local_heads
from catekv.token_buffer import TokenBuffer
from catekv.version import __version__

FORMAT_VERSION = 1
TENSOR_FILE = "cache.safetensors"
DESCRIPTION_FILE = "cache.json"


@dataclass
class CacheSettings:
    """What all layers of one cache share. Layers hold this and never the cache itself: a deep copy
    of the cache must not keep pointing at the original.

    ``trigger`` says when a layer compresses: ``count`` (as soon as ``prefill_tokens`` were seen),
    ``auto`` (at the end of the first forward of several tokens), ``lazy`` (before the first forward
    of one token) or ``hold`` (never: :class:`catekv.model.DensePrompt` does it).
    """

    method: Method | None
    num_layers: int
    kv_heads: int | None
    window: int
    trigger: str
    prefill_tokens: int | None = None
    compress_seconds: float = 0.0
    description: dict[str, Any] = field(default_factory=dict)


class RaggedLayer(CacheLayerMixin):
    """One attention layer: dense until compressed, then an immutable prefix and a dense tail."""

    is_compileable = False
    is_sliding = False
    # transformers asks this before decoding speculatively, which rolls back into the prefix
    is_croppable = False
    supports_early_init = False

    def __init__(self, index: int, settings: CacheSettings):
        super().__init__()
        self.index = index
        self.settings = settings
        self._clear()

    def _clear(self) -> None:
        self.buffer = TokenBuffer()
        self.prefix: RaggedPrefix | None = None
        self.queries: Tensor | None = None
        self.valid: Tensor | None = None
        self.padding: list[int] = []
        self.seen = 0
        self.scaling = 1.0
        self.query_heads = 0
        self.pending = False
        self.is_initialized = False

    # --- state --------------------------------------------------------------------------------

    @property
    def compressed(self) -> bool:
        return self.prefix is not None

    @property
    def tail_length(self) -> int:
        """Tokens stored densely: everything before compression, the newer ones after it."""
        return self.buffer.length

    @property
    def dense_tokens(self) -> int:
        """Uncompressed context tokens held right now."""
        return 0 if self.compressed else self.buffer.length

    def lengths(self) -> Tensor:
        """Stored entries per row, int64 [batch, kv_heads]."""
        if self.prefix is not None:
            return self.prefix.lengths.long() + self.tail_length
        if self.buffer.keys is None:
            return torch.zeros(0, 0, dtype=torch.int64)
        return torch.full(self.buffer.keys.shape[:2], self.tail_length, dtype=torch.int64)

    def padding_per_sequence(self) -> list[int]:
        """Padding columns among the compressed context, per sequence."""
        return self.padding or [0] * self.lengths().shape[0]

    def tensors(self) -> list[Tensor]:
        own = self.buffer.tensors() + [t for t in (self.queries, self.valid) if t is not None]
        return own + ([] if self.prefix is None else self.prefix.tensors())

    def full_bytes(self) -> int:
        """Bytes of the keys and values that an uncompressed layer would hold."""
        lengths = self.lengths()
        if self.prefix is not None:
            keys, values = self.prefix.keys, self.prefix.values
        elif self.buffer.keys is not None and self.buffer.values is not None:
            keys, values = self.buffer.keys, self.buffer.values
        else:
            return 0
        per_token = (keys.shape[-1] + values.shape[-1]) * keys.element_size()
        return lengths.numel() * self.seen * per_token

    # --- life cycle ---------------------------------------------------------------------------

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values [batch, kv_heads, tokens, dim]; return what to attend to.

        The returned keys carry a handle by which the attention function finds this layer.
        """
        if self.pending:
            raise UserError(
                f"layer {self.index} never saw the queries of an earlier forward: the model does "
                "not use catekv attention; call catekv.register_attention() and load it with "
                'attn_implementation="catekv" (or use CateKVModel)'
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.settings.trigger == "lazy" and key_states.shape[2] == 1 and self.dense_tokens:
            self.compress()
        reserve = 0 if self.compressed else self.settings.prefill_tokens or 0
        self.buffer.append(key_states, value_states, reserve, exact=not self.compressed)
        self.seen += key_states.shape[2]
        self.pending = True
        keys, values = self.buffer.views()
        setattr(keys, HANDLE, Handle(self, dense=not self.compressed))
        return keys, values

    def attended(self) -> None:
        """Called by the attention function once it has met this layer's keys."""
        self.pending = False

    def observe(self, queries: Tensor, valid: Tensor | None, scaling: float) -> None:
        """Called by the attention function after attending while dense.

        Args:
            queries: [batch, query_heads, query_tokens, head_dim] of this forward.
            valid: bool [batch, tokens seen], False on padding; None without padding.
            scaling: factor of the attention logits.
        """
        if not self.pending:  # a layer that shares another layer's keys and values
            return
        self.pending = False
        self.scaling = scaling
        self.query_heads = queries.shape[1]
        if valid is not None:
            self.valid = valid
        boundary = self.settings.prefill_tokens or self.seen
        before = min(queries.shape[2], queries.shape[2] + boundary - self.seen)
        window = self.settings.window
        if window and before > 0:
            # cloned: a slice would keep the whole query tensor alive
            newest = queries[:, :, max(0, before - window) : before].clone()
            if self.queries is not None and newest.shape[2] < window:
                newest = torch.cat([self.queries, newest], dim=2)[:, :, -window:].contiguous()
            self.queries = newest
        trigger = self.settings.trigger
        counted = self.settings.prefill_tokens
        if (trigger == "count" and counted is not None and self.seen >= counted) or (
            trigger == "auto" and queries.shape[2] > 1
        ):
            self.compress()

    def observed(self, window: int | None = None) -> tuple[Observed, Tensor | None]:
        """The dense context as a method sees it, and its padding mask (None: no padding)."""
        keys, values = self.buffer.views()
        tokens = min(self.settings.prefill_tokens or self.seen, self.seen)
        queries = self.queries
        if queries is None:
            queries = keys.new_empty(keys.shape[0], self.query_heads, 0, keys.shape[-1])
        elif window is not None:
            queries = queries[:, :, max(0, queries.shape[2] - window) :]
        valid = None
        if self.valid is not None and not bool(self.valid[:, :tokens].all()):
            valid = self.valid[:, :tokens]
        observed = Observed(
            queries,
            keys[:, :, :tokens],
            values[:, :, :tokens],
            self.scaling,
            self.index,
            self.settings.num_layers,
        )
        return observed, valid

    def compress(self) -> None:
        """Let the method choose among the context seen so far and free the rest; tokens beyond
        ``prefill_tokens`` become the tail."""
        method = self.settings.method
        if method is None:
            raise UserError("this cache has no method to compress with; make it with one")
        if self.pending or not self.seen:
            raise UserError(f"layer {self.index} has seen no prompt that it could compress")
        start = time.perf_counter()
        observed, valid = self.observed()
        kv_heads = observed.keys.shape[1]
        if self.settings.kv_heads is not None and kv_heads != self.settings.kv_heads:
            method = method.for_heads(local_heads(kv_heads, self.settings.kv_heads))
        tail = TokenBuffer()
        if self.seen > observed.tokens:
            keys, values = self.buffer.views()
            part = slice(observed.tokens, None)
            tail.append(keys[:, :, part].clone(), values[:, :, part].clone())
        self._adopt(compress_observed(method, observed, valid), valid, tail)
        self.settings.compress_seconds += time.perf_counter() - start

    def _adopt(self, prefix: RaggedPrefix, valid: Tensor | None, tail: TokenBuffer) -> None:
        self.prefix = prefix
        self.padding = [] if valid is None else (~valid).sum(dim=-1).tolist()
        self.buffer = tail
        self.queries = self.valid = None

    # --- what transformers asks ----------------------------------------------------------------

    def get_seq_length(self) -> int:
        """True number of columns ever fed, padding included: positions continue from it."""
        return self.seen

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(length, offset) of the keys a mask must describe: the tail once compressed. The prefix
        needs no mask, because padding is never selected into it."""
        return self.tail_length + query_length, self.seen - self.tail_length

    def crop(self, tokens: int | Tensor) -> None:
        """Take back the newest tokens: a negative number is how many, a positive one (older
        transformers) how many to keep. ``UserError`` if compressed ones would be needed again."""
        tokens = int(tokens)
        remove = -tokens if tokens < 0 else max(0, self.seen - tokens) if tokens else 0
        if not remove:
            return
        if remove > self.tail_length:
            raise UserError(
                f"cannot take back {remove} tokens: only the {self.tail_length} tokens since "
                "compression are stored as they were; keep a fork of the context from before"
            )
        self.buffer.crop(remove)
        self.seen -= remove
        if self.queries is not None:
            self.queries = self.queries[:, :, : max(0, self.queries.shape[2] - remove)]
        if self.valid is not None:
            self.valid = self.valid[:, : self.seen]

    def _select(self, indices: Tensor) -> None:
        if not self.seen:
            return
        host = indices.tolist()
        self.buffer.select(indices)
        if self.prefix is not None:
            self.prefix = self.prefix.select_rows(host)
        if self.padding:
            self.padding = [self.padding[b] for b in host]
        if self.queries is not None:
            self.queries = self.queries[indices.to(self.queries.device)]
        if self.valid is not None:
            self.valid = self.valid[indices.to(self.valid.device)]

    def _batch(self) -> int:
        return self.lengths().shape[0]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._select(torch.arange(self._batch()).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._select(torch.arange(self._batch())[indices.cpu()])

    def reset(self) -> None:
        self._clear()

    def offload(self) -> None:
        raise UserError("a compressed cache cannot be offloaded; make the cache without offloading")

    prefetch = offload


def compress_observed(method: Method, observed: Observed, valid: Tensor | None) -> RaggedPrefix:
    """What ``method`` keeps of one observed layer, packed."""
    selection = method.select(
        observed.queries,
        observed.keys,
        observed.values,
        observed.layer,
        observed.num_layers,
        valid=valid,
        scaling=observed.scaling,
    )
    if selection.merged is not None:
        return pack_merged(selection.merged)
    assert selection.keep is not None
    return pack(observed.keys, observed.values, selection.keep)


class RaggedCache(Cache):
    """A cache for ``model.generate(past_key_values=...)`` that compresses with a method.

    The model must use catekv attention (:func:`catekv.register_attention`). Sliding-window layers
    stay what transformers makes them, unless their window spans the whole context window.

    Args:
        config: configuration of the model.
        method: what chooses the entries to keep.
        prefill_tokens: exact context boundary in columns (padding included). The context is
            compressed as soon as a layer has seen that many; what a forward brings beyond them
            starts the tail, so any chunking gives the same result. None: compress before the first
            forward of a single token, which needs no knowledge of the length, but all layers stay
            dense until then. ``"auto"``: compress at the end of the first forward of several tokens
            (layer by layer; not for prompts that are fed in several forwards).
        offloading: refused; here so that the error says so.
    """

    def __init__(
        self,
        config: Any,
        method: Method | None,
        prefill_tokens: int | str | None = None,
        *,
        offloading: bool = False,
        hold_window: int | None = None,
    ):
        if offloading:
            raise UserError(
                "a compressed cache cannot be offloaded; make the cache without offloading"
            )
        if isinstance(prefill_tokens, str) and prefill_tokens != "auto":
            raise UserError(f"prefill_tokens {prefill_tokens!r}: use a number, None or 'auto'")
        if isinstance(prefill_tokens, int) and prefill_tokens < 1:
            raise UserError(f"prefill_tokens {prefill_tokens} must be at least 1")
        trigger = "lazy" if prefill_tokens is None else "count"
        if prefill_tokens == "auto":
            trigger = "auto"
        if hold_window is not None:
            trigger = "hold"
        text_config = config.get_text_config(decoder=True)
        layers = DynamicCache(config=config).layers
        self.settings = CacheSettings(
            method=method,
            num_layers=len(layers),
            kv_heads=getattr(text_config, "num_key_value_heads", None),
            window=method.needs.window if method is not None else hold_window or 0,
            trigger=trigger,
            prefill_tokens=prefill_tokens if isinstance(prefill_tokens, int) else None,
            description=method.to_dict() if method is not None else {},
        )
        #: hash of the model's configuration; load() refuses a cache of another model
        self.config_hash = config_hash(config)
        span = getattr(text_config, "max_position_embeddings", None)
        super().__init__(
            layers=[
                RaggedLayer(index, self.settings) if _replaceable(layer, span) else layer
                for index, layer in enumerate(layers)
            ]
        )

    @property
    def ragged_layers(self) -> list[RaggedLayer]:
        return [layer for layer in self.layers if isinstance(layer, RaggedLayer)]

    @property
    def compressed(self) -> bool:
        """Whether every layer that can be compressed is."""
        return all(layer.compressed for layer in self.ragged_layers)

    def begin_prefill(self, prefill_tokens: int) -> None:
        """Set the context boundary of a cache that has seen nothing yet."""
        if any(layer.seen for layer in self.ragged_layers):
            raise UserError("set the context boundary before anything is fed, or reset() first")
        self.settings.prefill_tokens = prefill_tokens
        self.settings.trigger = "count"

    def compress(self) -> None:
        """Compress now what is still dense."""
        for layer in self.ragged_layers:
            if not layer.compressed:
                layer.compress()

    def activate_past_recording(self) -> None:
        raise UserError(
            "assisted and speculative decoding roll the cache back over tokens that a compressed "
            "cache no longer has; generate without assistant_model and prompt lookup"
        )

    # --- sizes ----------------------------------------------------------------------------------

    def lengths(self) -> list[Tensor]:
        """Stored tokens of every layer, int64 [batch, kv_heads]."""
        return [
            layer.lengths() if isinstance(layer, RaggedLayer) else _plain_lengths(layer)
            for layer in self.layers
        ]

    def stored_bytes(self) -> int:
        """Bytes of all storages this cache holds; a storage seen through views counts once."""
        return storage_bytes([t for layer in self.layers for t in _tensors(layer)])

    def full_bytes(self) -> int:
        """Bytes that an uncompressed cache of the same model, batch and length would hold."""
        return sum(
            layer.full_bytes() if isinstance(layer, RaggedLayer) else _plain_bytes(layer)
            for layer in self.layers
        )

    def kept_share(self) -> float:
        """Stored tokens over true tokens (padding not counted) in the layers that compress."""
        stored = full = 0
        for layer in self.ragged_layers:
            lengths = layer.lengths()
            stored += int(lengths.sum())
            padding = sum(layer.padding_per_sequence())
            full += lengths.shape[-1] * (lengths.shape[0] * layer.seen - padding)
        return stored / full if full else 1.0

    # --- copies and files -------------------------------------------------------------------------

    def fork(self) -> RaggedCache:
        """An independent cache in the same state; the compressed part is shared, not copied."""
        return copy.deepcopy(self)

    def save(self, path: str | Path, **extra: Any) -> None:
        """Write the compressed cache to a folder: tensors and a JSON description.

        Raises:
            UserError: if a layer is not compressed yet or is of a kind that cannot be stored.
        """
        from safetensors.torch import save_file

        tensors: dict[str, Tensor] = {}
        records = []
        for index, layer in enumerate(self.layers):
            record = _save_layer(layer, f"{index}.", tensors)
            records.append(record)
        description = {
            "format": FORMAT_VERSION,
            "version": __version__,
            "config_hash": self.config_hash,
            "method": self.settings.description,
            "prefill_tokens": self.settings.prefill_tokens,
            "layers": records,
            **extra,
        }
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        # the description is written last: a torn write leaves a folder that load() refuses
        (folder / DESCRIPTION_FILE).unlink(missing_ok=True)
        save_file(tensors, str(folder / TENSOR_FILE))
        partial = folder / (DESCRIPTION_FILE + ".partial")
        partial.write_text(json.dumps(description, indent=1))
        partial.replace(folder / DESCRIPTION_FILE)

    @classmethod
    def load(cls, path: str | Path, model: Any) -> RaggedCache:
        """Read a cache that :meth:`save` wrote, onto the model's device.

        Args:
            path: the folder.
            model: a ``CateKVModel``, a transformers model or a configuration.

        Raises:
            UserError: no such folder, another format version, or a cache of another model.
        """
        config, device = _config_and_device(model)
        folder = Path(path)
        try:
            description = json.loads((folder / DESCRIPTION_FILE).read_text())
            from safetensors.torch import load_file

            tensors = load_file(str(folder / TENSOR_FILE), device=str(device))
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} holds no saved cache that can be read: {error}") from error
        if description.get("format") != FORMAT_VERSION:
            raise UserError(
                f"{folder} has cache format {description.get('format')!r}, this version reads "
                f"{FORMAT_VERSION}; make the context again"
            )
        cache = cls(config, None, description["prefill_tokens"])
        if description["config_hash"] != cache.config_hash:
            raise UserError(
                f"{folder} was saved from another model (configuration "
                f"{description['config_hash']}, this one has {cache.config_hash})"
            )
        cache.settings.description = description["method"]
        cache.settings.trigger = "count"
        kinds = ["ragged" if isinstance(la, RaggedLayer) else "plain" for la in cache.layers]
        if kinds != [record["kind"] for record in description["layers"]]:
            raise UserError(f"{folder} was saved from a model with other layers; load that model")
        for index, (layer, record) in enumerate(
            zip(cache.layers, description["layers"], strict=True)
        ):
            _load_layer(layer, f"{index}.", record, tensors)
        return cache


def _replaceable(layer: Any, span: int | None) -> bool:
    """Whether a layer attends to the whole context, so that its cache may be compressed."""
    if type(layer) is DynamicLayer:
        return True
    window = getattr(layer, "sliding_window", None)
    # some long-context models carry a sliding window as long as everything they can read
    return (
        isinstance(layer, DynamicLayer)
        and getattr(layer, "is_sliding", False)
        and span is not None
        and window is not None
        and window >= span
    )


def _tensors(layer: Any) -> list[Tensor]:
    if isinstance(layer, RaggedLayer):
        return layer.tensors()
    found = []
    for value in vars(layer).values():
        values: Iterable[Any] = value if isinstance(value, list | tuple) else [value]
        found += [item for item in values if isinstance(item, Tensor) and item.ndim > 0]
    return found


def _plain_bytes(layer: Any) -> int:
    return storage_bytes(_tensors(layer))


def _plain_lengths(layer: Any) -> Tensor:
    keys = getattr(layer, "keys", None)
    if keys is None or keys.ndim < 3:
        return torch.zeros(0, 0, dtype=torch.int64)
    return torch.full(keys.shape[:2], keys.shape[2], dtype=torch.int64)


def _save_layer(layer: Any, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    if isinstance(layer, RaggedLayer):
        if layer.prefix is None:
            raise UserError("only a compressed cache can be saved; feed the whole context first")
        tensors[prefix + "keys"] = layer.prefix.keys.contiguous()
        tensors[prefix + "values"] = layer.prefix.values.contiguous()
        if layer.prefix.bias is not None:
            tensors[prefix + "bias"] = layer.prefix.bias.contiguous()
        if layer.tail_length:
            keys, values = layer.buffer.views()
            tensors[prefix + "tail_keys"] = keys.contiguous()
            tensors[prefix + "tail_values"] = values.contiguous()
        return {
            "kind": "ragged",
            "rows": layer.prefix.host_rows,
            "kv_heads": layer.prefix.kv_heads,
            "seen": layer.seen,
            "padding": layer.padding,
            "scaling": layer.scaling,
            "query_heads": layer.query_heads,
        }
    if not (isinstance(layer, DynamicLayer) and hasattr(layer, "cumulative_length")):
        raise UserError(f"a layer of type {type(layer).__name__} cannot be saved")
    if layer.is_initialized:
        tensors[prefix + "keys"] = layer.keys.contiguous()
        tensors[prefix + "values"] = layer.values.contiguous()
    return {"kind": "plain", "seen": layer.cumulative_length}


def _load_layer(
    layer: Any, prefix: str, record: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    keys, values = tensors.get(prefix + "keys"), tensors.get(prefix + "values")
    if keys is None or values is None:
        if record["seen"]:
            raise UserError("a saved cache lacks tensors of one layer; make the context again")
        return
    layer.lazy_initialization(keys, values)
    if not isinstance(layer, RaggedLayer):
        layer.keys, layer.values = keys, values
        layer.cumulative_length = record["seen"]
        return
    rows = [(int(offset), int(length)) for offset, length in record["rows"]]
    layer.prefix = from_rows(keys, values, tensors.get(prefix + "bias"), rows, record["kv_heads"])
    if prefix + "tail_keys" in tensors:
        layer.buffer.append(tensors[prefix + "tail_keys"], tensors[prefix + "tail_values"])
    layer.seen = record["seen"]
    layer.padding = record["padding"]
    layer.scaling = record["scaling"]
    layer.query_heads = record["query_heads"]


def _config_and_device(model: Any) -> tuple[Any, torch.device]:
    config = getattr(model, "config", model)
    return config, torch.device(getattr(model, "device", "cpu"))
