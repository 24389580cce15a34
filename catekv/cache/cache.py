"""A transformers cache whose full-attention layers store a different length in every row.

A layer is *dense* while the prompt comes in; at the context boundary its method chooses what to
keep, the rest is freed, and from then on the layer is a ragged prefix plus a dense tail of
everything fed since. Positions always continue from the true number of tokens seen.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from catekv.cache import files, plain_layers
from catekv.cache.layer import CacheSettings, RaggedLayer
from catekv.cache.sharded import select_here
from catekv.errors import UserError
from catekv.kernels.ragged import storage_bytes
from catekv.methods.base import Method, Needs
from catekv.models.compat import attention_sizes, context_window
from catekv.models.shape import config_hash
from catekv.models.weights_identity import (
    WeightsIdentity,
    refuse_other_weights,
    warn_unknown_weights,
)


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
        hold: Needs | None = None,
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
        if hold is not None:
            trigger = "hold"
        text_config = config.get_text_config(decoder=True)
        layers = DynamicCache(config=config).layers
        self.settings = CacheSettings(
            method=method,
            num_layers=len(layers),
            kv_heads=attention_sizes(config).kv_heads,
            needs=method.needs if method is not None else hold or Needs(),
            trigger=trigger,
            prefill_tokens=prefill_tokens if isinstance(prefill_tokens, int) else None,
            description=method.to_dict() if method is not None else {},
            config=config,
        )
        #: hash of the model's configuration; load() refuses a cache of another model
        self.config_hash = config_hash(config)
        #: the weights that filled it; None where a caller ran the model by itself
        self.weights: WeightsIdentity | None = None
        span = context_window(config)
        # these hold projected images, which are no tokens of the context
        crossing = set(getattr(text_config, "cross_attention_layers", None) or ())
        super().__init__(
            layers=[
                RaggedLayer(index, self.settings)
                if _replaceable(layer, span) and index not in crossing
                else layer
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

    @property
    def batch(self) -> int:
        """Sequences that were fed; 0 before anything was."""
        for layer in self.layers:
            if isinstance(layer, RaggedLayer):
                if layer.seen:
                    return layer.lengths().shape[0]
            elif (found := plain_layers.batch_of(layer)) is not None:
                return found
        return 0

    @property
    def padded_from(self) -> float:
        """Questions of so many tokens and more may follow the contexts in one batch, padded to one
        length. Layers that count the columns between two tokens (windows, recurrent states) want
        all questions equally long; methods may treat one token otherwise than several. Without a
        question at all an answer begins with what the context's last token foretold.
        """
        if any(
            not isinstance(layer, RaggedLayer) and plain_layers.depends_on_order(layer)
            for layer in self.layers
        ):
            return math.inf
        stores = (layer.store for layer in self.ragged_layers)
        return max((store.padded_from for store in stores if store is not None), default=1) or 1

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences ``indices`` of the batch (positions or bool), in this order."""
        rows = torch.arange(self.batch)[indices.cpu()]
        for layer in self.layers:
            if isinstance(layer, RaggedLayer):
                layer.batch_select_indices(rows)
            else:
                plain_layers.select_rows(layer, rows)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every sequence of the batch ``repeats`` times, one after another."""
        self.batch_select_indices(torch.arange(self.batch).repeat_interleave(repeats))

    @property
    def due(self) -> bool:
        """Whether all layers wait to be compressed together (``Needs.all_layers``)."""
        waits = self.settings.needs.all_layers and self.settings.onlooker is None
        return waits and all(
            not layer.compressed and layer.due(layer.seen) for layer in self.ragged_layers
        )

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *arguments: Any,
        **options: Any,
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values of a layer; see :meth:`RaggedLayer.update`."""
        if self.settings.needs.all_layers:
            first = next(iter(self.ragged_layers), None)
            if first is not None and first is self.layers[layer_idx]:
                single = self.settings.trigger == "lazy" and key_states.shape[2] == 1
                if self.due or (single and first.dense_tokens):
                    self.compress()
        return super().update(key_states, value_states, layer_idx, *arguments, **options)

    def compress(self) -> None:
        """Compress now what is still dense."""
        waiting = [layer for layer in self.ragged_layers if not layer.compressed]
        if not self.settings.needs.all_layers:
            for layer in waiting:
                layer.compress()
        elif waiting:
            self._compress_together(waiting)

    def _compress_together(self, layers: list[RaggedLayer]) -> None:
        start = time.perf_counter()
        method = layers[0].method()
        seen = [layer.observed() for layer in layers]
        method, selections = select_here(
            method, [observed for observed, _ in seen], seen[0][1], self.settings.kv_heads
        )
        for layer, (observed, valid), selection in zip(layers, seen, selections, strict=True):
            layer.adopt(method, observed, valid, selection)
        self.settings.compress_seconds += time.perf_counter() - start

    def activate_past_recording(self) -> None:
        raise UserError(
            "assisted and speculative decoding roll the cache back over tokens that a compressed "
            "cache no longer has; generate without assistant_model and prompt lookup"
        )

    def reserve_tails(self, capacity: int) -> None:
        """Make room for ``capacity`` tokens after the context in every compressed layer, in tensors
        that then stay where they are.

        Raises:
            UserError: if a layer is not compressed yet.
        """
        for layer in self.ragged_layers:
            layer.reserve_tail(capacity)

    @property
    def tail_length(self) -> int:
        """Tokens after the compressed context, stored densely."""
        return max((layer.tail_length for layer in self.ragged_layers), default=0)

    @property
    def longest_tail(self) -> float:
        """Columns that a tail reaches before the method takes it over; infinite where it stays."""
        stores = [layer.store for layer in self.ragged_layers]
        if not stores or any(store is None or not store.periodic for store in stores):
            return math.inf
        return max(store.longest_tail for store in stores if store is not None)

    def tails_due(self, hidden: Sequence[int] | None = None, new: int = 1) -> bool:
        """Whether the tails are taken over now, by methods that choose while decoding.

        Args:
            hidden: columns of the tail of every sequence that are padding; None: none.
            new: tokens since this was asked last.
        """
        layer = next(iter(self.ragged_layers), None)
        if layer is None or layer.store is None or not layer.store.periodic:
            return False
        hidden = [0] * self.batch if hidden is None else hidden
        pending = [layer.tail_length - count for count in hidden]
        return layer.store.due(pending, [new] * len(pending))

    def fold(self, visible: Tensor | None = None, new: int | None = None) -> None:
        """Let the method choose among what every layer holds and the tokens after it.

        Args:
            visible: bool [batch, tail], False on padding; None: no padding.
            new: tokens since :meth:`tails_due` was asked last, which says for which sequences it
                is time; None: for all of them.

        Raises:
            UserError: the method chooses among a prompt only.
        """
        if self.longest_tail == math.inf:
            raise UserError(
                f"method {self.settings.description.get('name')!r} does not compress what comes "
                "after a prompt; prefill with a method that does, such as decoding (with "
                "base=snapkv, keydiff, ...) or r_kv"
            )
        for layer in self.ragged_layers:
            # without a tail, too, there may be more than the method is to keep
            if layer.tail_length or new is None:
                count = None if new is None else [new] * self.batch
                layer.fold(visible, count, at_once=new is None)

    def lengths(self) -> list[Tensor]:
        """Stored tokens of every layer, int64 [batch, kv_heads]; [batch, 0] of a layer without a KV
        cache (linear attention)."""
        batch = self.batch
        return [
            layer.lengths()
            if isinstance(layer, RaggedLayer)
            else plain_layers.entry_lengths(layer, batch)
            for layer in self.layers
        ]

    def stored_bytes(self) -> int:
        """Bytes of all storages this cache holds, the scratch memory of its decode steps included;
        a storage seen through views counts once."""
        own = [tensor for layer in self.layers for tensor in _tensors(layer)]
        return storage_bytes(own + self.settings.workspace.tensors())

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

    def fork(self) -> RaggedCache:
        """An independent cache in the same state; the compressed part is shared, not copied."""
        return copy.deepcopy(self)

    def refuse_other_model(self, model: Any) -> None:
        """``UserError`` unless this cache was filled by ``model`` (of transformers) as it is now:
        its configuration, weights and active adapters."""
        if self.config_hash != config_hash(model.config):
            raise UserError(
                f"the context was read by another model (configuration {self.config_hash}, this "
                f"one has {config_hash(model.config)}); use the model that read it, or prefill "
                "again"
            )
        refuse_other_weights(self.weights, model)

    def save(
        self,
        path: str | Path,
        *,
        model: torch.nn.Module | None = None,
        beside: Mapping[str, Mapping[str, Tensor]] | None = None,
        **extra: Any,
    ) -> None:
        """Write the compressed cache to a folder: tensors and a JSON description.

        Args:
            path: the folder; made if it is missing.
            model: the transformers model that filled it, where that was not done with
                ``CateKVModel``: its weights are recorded, so that :meth:`load` refuses others.
            beside: further files of tensors that are written with it, by their names.
            extra: further plain values for the description.

        Raises:
            UserError: if a layer is not compressed yet or is of a kind that cannot be stored, or if
                ``model`` is not what filled the cache.
        """
        if model is not None:
            self.refuse_other_model(model)
        weights = self.weights if model is None else WeightsIdentity.of(model)
        files.write(
            Path(path),
            self.layers,
            {
                "config_hash": self.config_hash,
                "weights": None if weights is None else weights.to_dict(),
                "method": self.settings.description,
                "prefill_tokens": self.settings.prefill_tokens,
                "beside": sorted(beside or ()),
                **extra,
            },
            beside,
        )

    @classmethod
    def load(cls, path: str | Path, model: Any) -> RaggedCache:
        """Read a cache that :meth:`save` wrote, onto the model's device.

        Args:
            path: the folder.
            model: a ``CateKVModel``, a transformers model or a configuration.

        Raises:
            UserError: no such folder, another format version, or a cache of another model, other
                weights or another number format. A cache that does not say which weights filled it
                is read with a warning.
        """
        config = getattr(model, "config", model)
        description, tensors = files.read(Path(path), getattr(model, "device", "cpu"))
        cache = cls(config, None, description["prefill_tokens"])
        cache.settings.description = description["method"]
        if description["config_hash"] != cache.config_hash:
            raise UserError(
                f"{path} was saved from another model (configuration "
                f"{description['config_hash']}, this one has {cache.config_hash})"
            )
        cache.weights = WeightsIdentity.from_dict(description.get("weights"))
        own = getattr(model, "model", model) if hasattr(model, "method") else model
        if cache.weights is None:
            warn_unknown_weights(f"{path}")
            if isinstance(own, torch.nn.Module):
                # taken on trust; saved again it says so itself
                cache.weights = WeightsIdentity.of(own)
        elif isinstance(own, torch.nn.Module):
            refuse_other_weights(cache.weights, own, f"{path}")
        files.restore(cache.layers, description["layers"], tensors)
        return cache


def compressing_layers(config: Any) -> list[int]:
    """Indices of the layers of a model that methods compress."""
    layers = RaggedCache(config, None).layers
    return [index for index, layer in enumerate(layers) if isinstance(layer, RaggedLayer)]


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
    return layer.tensors() if isinstance(layer, RaggedLayer) else plain_layers.tensors_of(layer)


def _plain_bytes(layer: Any) -> int:
    return sum(tensor.nbytes for tensor in _tensors(layer))


def uncompressed_layers(config: Any) -> str:
    """The layers that transformers keeps in its own way (sliding windows, linear attention), in
    words; nothing if there are none."""
    layers = RaggedCache(config, None).layers
    others = [i for i, layer in enumerate(layers) if not isinstance(layer, RaggedLayer)]
    return plain_layers.described(layers, others) if others else ""
