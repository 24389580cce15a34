"""Models by name with random weights, and smaller ones of the same proportions."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catekv.errors import UserError
from catekv.models.compat import context_window, text_config

if TYPE_CHECKING:
    from catekv.model import CateKVModel

#: A scaled model keeps at least these, so that ratios of 0.3 and 0.4 stay what they are.
LEAST_LAYERS, LEAST_KV_HEADS, LEAST_VOCABULARY = 5, 2, 256
_ROUND = 16


def is_known_shape(name: str | None) -> bool:
    """Whether a name means a built-in configuration and not a folder."""
    from catekv.models import presets

    return name is not None and name.lower() in presets.available() and not Path(name).is_dir()


def check_scale(scale: float | None) -> None:
    """Raise ``UserError`` unless 0 < scale <= 1 (or None)."""
    if scale is not None and not 0 < scale <= 1:
        raise UserError(f"--scale {scale:g} is outside (0, 1]; 1 is the model's own size")


def scaled_length(length: int, scale: float | None) -> int:
    """A context length in the proportion of the model."""
    return length if scale is None else max(1, round(length * scale))


def scaled_config(config: Any, scale: float) -> Any:
    """A smaller configuration: layers, heads, widths and the vocabulary shrink alike.

    The head dimension and the number of query heads per KV head stay, because the kernels depend on
    them. With the context scaled too, weights and cache shrink by about the same factor
    ``scale ** 3``, so that their proportion, and with it the ideal speed-up, is roughly that of the
    whole model.
    """
    check_scale(scale)
    config = copy.deepcopy(config)
    text = text_config(config)
    query_heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or query_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // query_heads
    group = query_heads // kv_heads
    fewer = min(kv_heads, max(LEAST_KV_HEADS, round(kv_heads * scale)))
    hidden = text.hidden_size * fewer // kv_heads
    width = max(_ROUND, round(text.intermediate_size * scale / _ROUND) * _ROUND)
    layers = max(LEAST_LAYERS, round(text.num_hidden_layers * scale))
    _set_layers(text, min(text.num_hidden_layers, layers))
    text.num_attention_heads, text.num_key_value_heads = fewer * group, fewer
    text.hidden_size, text.head_dim = hidden, head_dim
    text.intermediate_size = min(text.intermediate_size, width)
    text.vocab_size = max(LEAST_VOCABULARY, round(text.vocab_size * scale**2))
    return config


def _set_layers(text: Any, layers: int) -> None:
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]


def long_enough(config: Any, tokens: int) -> tuple[Any, str]:
    """The configuration with a context window of at least ``tokens``, and a note if it was widened.

    Beyond the trained window there is speed to measure but no accuracy; the paper measured some
    models there.
    """
    window = context_window(config)
    if window is None or tokens <= window:
        return config, ""
    config = copy.deepcopy(config)
    text = text_config(config)
    text.max_position_embeddings = tokens
    if getattr(text, "sliding_window", None) is not None:
        text.sliding_window = None
    return config, f"the window was widened from {window} to {tokens} tokens: speed only"


def random_model(
    name: str,
    tokens: int,
    *,
    scale: float | None = None,
    layers: int | None = None,
    dtype: str = "auto",
    device: str = "auto",
    attention: str = "auto",
) -> tuple[CateKVModel, str]:
    """A model of a built-in shape with random weights, made on its device, and notes about it.

    Args:
        name: one of ``catekv.models.presets.available()``.
        tokens: positions that it must be able to read.
        scale: see :func:`scaled_config`. layers: so many layers instead of its own.

    Raises:
        UserError: unknown name, scale or device.
    """
    from catekv.model import CateKVModel
    from catekv.models import presets

    config = presets.preset_config(name, layers)
    if scale is not None:
        config = scaled_config(config, scale)
        if layers is not None:
            _set_layers(text_config(config), layers)
    config, note = long_enough(config, tokens)
    model = CateKVModel.from_config(
        config, random_weights=True, dtype=dtype, device=device, attention=attention
    )
    return model, note
