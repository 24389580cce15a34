"""The shape of a model as far as methods and masks ask for it, and what identifies it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from catekv.errors import UserError
from catekv.models.compat import attention_sizes


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a model that a method may depend on.

    ``config_hash`` (:func:`catekv.models.shape.config_hash`) says which model it is, where that is
    known; shapes are equal without it.
    """

    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    config_hash: str | None = field(default=None, compare=False, repr=False)


#: Entries of a configuration that change without the model changing.
_VOLATILE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")


def model_shape_of(config: Any) -> tuple[int, int]:
    """(layers, KV heads) of a ``ModelShape`` or a transformers configuration."""
    if hasattr(config, "layers") and hasattr(config, "kv_heads"):
        return int(config.layers), int(config.kv_heads)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    layers = getattr(config, "num_hidden_layers", None)
    if getattr(config, "is_heterogeneous", False):
        return int(config.num_hidden_layers), attention_sizes(config).kv_heads
    heads = getattr(config, "num_key_value_heads", None)
    heads = heads if heads is not None else getattr(config, "num_attention_heads", None)
    if layers is None or heads is None:
        raise UserError(
            f"{type(config).__name__} names no number of layers and heads; pass a ModelShape or a "
            "transformers configuration"
        )
    return int(layers), int(heads)


def refuse_other_extents(
    what: str, own: Sequence[int], model: Sequence[int], remedy: str = "use those of this model"
) -> None:
    """Refuse what was made for a model of other extents.

    Args:
        what: subject and verb, as "the scores are for".
        own: its numbers of layers, KV heads and, where it has to do with them, inputs of a layer.
        model: those of the model, as far as they are known.

    Raises:
        UserError: they differ; with both.
    """
    own = own[: len(model)]
    if tuple(own) != tuple(model):
        said = " x ".join(["{} layers", "{} KV heads", "{} inputs"][: len(model)])
        raise UserError(
            f"{what} {said.format(*own)} but the model has {said.format(*model)}; {remedy}"
        )


def config_hash(config: Any) -> str:
    """Short hash of what makes a model's architecture: same weights layout, same hash."""
    content = config.to_dict() if hasattr(config, "to_dict") else dict(vars(config))
    content = {key: value for key, value in content.items() if key not in _VOLATILE}
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
