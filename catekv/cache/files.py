"""Compressed caches as files: one safetensors file and a JSON description that names its shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from catekv.cache.layer import RaggedLayer
from catekv.errors import UserError
from catekv.files import read_object, read_tensors, write_tensors
from catekv.kernels.logits import LogitForm
from catekv.kernels.ragged import RaggedPrefix, from_rows
from catekv.methods.base import Observed
from catekv.methods.registry import from_dict
from catekv.methods.stores import restored
from catekv.methods.stores.base import DecodeStore
from catekv.models.rotation import rotation_of
from catekv.version import __version__

FORMAT_VERSION = 1
TENSOR_FILE = "cache.safetensors"
DESCRIPTION_FILE = "cache.json"


def write(
    folder: Path,
    layers: Sequence[Any],
    description: dict[str, Any],
    beside: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Write all layers of a compressed cache; ``description`` holds further plain values, and
    ``beside`` what else belongs to it, by the names of files. What cannot be saved is refused
    before the folder is touched."""
    tensors: dict[str, Tensor] = {}
    records = [_save_layer(layer, f"{index}.", tensors) for index, layer in enumerate(layers)]
    whole = {"format": FORMAT_VERSION, "version": __version__, "layers": records, **description}
    write_tensors(
        folder / TENSOR_FILE, tensors, folder / DESCRIPTION_FILE, whole, "the cache", beside
    )


def read(folder: Path, device: torch.device | str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of a saved cache; ``UserError`` if there is none of this format."""
    try:
        description = read_object(folder / DESCRIPTION_FILE)
        tensors = read_tensors(folder / TENSOR_FILE, str(device))
    except UserError as error:
        raise UserError(f"{folder} holds no saved cache that can be read: {error}") from error
    if description.get("format") != FORMAT_VERSION:
        raise UserError(
            f"{folder} has cache format {description.get('format')!r}, this version reads "
            f"{FORMAT_VERSION}; make the context again"
        )
    return description, tensors


def restore(
    layers: Sequence[Any], records: Sequence[dict[str, Any]], tensors: dict[str, Tensor]
) -> None:
    """Put saved contents into the fresh layers of a cache."""
    kinds = ["ragged" if isinstance(layer, RaggedLayer) else "plain" for layer in layers]
    if kinds != [record["kind"] for record in records]:
        raise UserError("the cache was saved from a model with other layers; load that model")
    for index, (layer, record) in enumerate(zip(layers, records, strict=True)):
        _load_layer(layer, f"{index}.", record, tensors)


def _save_layer(layer: Any, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    if isinstance(layer, RaggedLayer):
        if layer.prefix is None:
            raise UserError("only a compressed cache can be saved; feed the whole context first")
        record: dict[str, Any] = {}
        if layer.store is not None:
            own, record["store"] = layer.store.saved()
            tensors |= {f"{prefix}store.{name}": part.contiguous() for name, part in own.items()}
        entries = layer.attended_prefix
        assert entries is not None
        tensors[prefix + "keys"] = entries.keys.contiguous()
        tensors[prefix + "values"] = entries.values.contiguous()
        if entries.bias is not None:
            tensors[prefix + "bias"] = entries.bias.contiguous()
        if layer.tail_length:
            keys, values = layer.buffer.views()
            tensors[prefix + "tail_keys"] = keys.contiguous()
            tensors[prefix + "tail_values"] = values.contiguous()
        return {
            **record,
            "kind": "ragged",
            "rows": entries.host_rows,
            "kv_heads": entries.kv_heads,
            "seen": layer.seen,
            "padding": layer.padding,
            "scaling": layer.scaling,
            "query_heads": layer.query_heads,
        }
    if not (isinstance(layer, DynamicLayer) and hasattr(layer, "cumulative_length")):
        raise UserError(f"a layer of type {type(layer).__name__} cannot be saved")
    if layer.keys is not None and layer.values is not None:
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
    entries = from_rows(keys, values, tensors.get(prefix + "bias"), rows, record["kv_heads"])
    if prefix + "tail_keys" in tensors:
        layer.buffer.append(tensors[prefix + "tail_keys"], tensors[prefix + "tail_values"])
    layer.seen = record["seen"]
    layer.padding = record["padding"]
    layer.scaling = record["scaling"]
    layer.query_heads = record["query_heads"]
    store, state = None, record.get("store")
    if state is not None:
        store = _store(layer, f"{prefix}store.", state, entries, tensors)
    layer.hold(entries, store)


def _store(
    layer: RaggedLayer,
    prefix: str,
    state: dict[str, Any],
    entries: RaggedPrefix,
    tensors: dict[str, Tensor],
) -> DecodeStore:
    """What was made of a layer: by a method that goes on while decoding, or by quantising."""
    own = {
        name.removeprefix(prefix): part for name, part in tensors.items() if name.startswith(prefix)
    }
    named = restored(state, own)
    if named is not None:
        return named
    method = from_dict(state["method"])
    keys, values = (
        part[None, None, :0].expand(entries.batch, entries.kv_heads, -1, -1)
        for part in (entries.keys, entries.values)
    )
    rotation = None
    if method.needs.rotation:
        longest = max(state["prompts"])
        rotation = rotation_of(layer.settings.config, longest, layer.index).to(keys.device)
    about = Observed(
        keys[:, :1].expand(-1, layer.query_heads, -1, -1),
        keys,
        values,
        layer.scaling,
        layer.index,
        state["num_layers"],
        rotation=rotation,
        form=LogitForm(state["softcap"], own.get("sinks")),
    )
    return method.restored_store(entries, about, own, state)
