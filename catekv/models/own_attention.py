"""Attention that cannot be compressed from outside of a model's code, and what it would need."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Sequence
from typing import Any

import torch

from catekv.errors import UserError
from catekv.models.compat import text_config


def why_unobserved(model: Any, attended: bool, layers: Sequence[int]) -> str:
    """Why queries and keys of a model's layers could not be observed together.

    Args:
        model: the transformers model.
        attended: whether transformers' attention function was called at all.
        layers: indices of those that were fed but not observed; none: nothing was fed.
    """
    config = text_config(model.config)
    if not layers:
        return (
            "it stores nothing in the cache that it is given; it would need model code that keeps "
            "its keys and values there"
        )
    if getattr(config, "kv_lora_rank", None):
        return (
            "it caches one latent per token that all heads share (latent attention), so no head "
            "has keys of its own to drop; it would need methods that drop tokens for all heads"
        )
    if attended:
        return (
            f"layers {list(layers)} do not hand the cache's keys to the attention function "
            "unchanged, so queries and keys cannot be observed together"
        )
    bias = ""
    if _has_alibi(model):
        bias = ", and attention over kept tokens that adds the distances of ALiBi"
    return (
        "it computes attention in code of its own, where queries cannot be observed; it would "
        f"need model code that calls transformers' attention interface{bias}"
    )


def _has_alibi(model: Any) -> bool:
    config = text_config(model.config)
    if getattr(config, "alibi", False) or getattr(
        getattr(config, "attn_config", None), "alibi", False
    ):
        return True
    builders = ("build_alibi_tensor", "build_mpt_alibi_tensor")
    return any(hasattr(module, name) for module in model.modules() for name in builders)


def refuse_sparse_attention(model: torch.nn.Module) -> None:
    """Refuse a model that masks the tokens its indexer left out only under the names of stock
    attention implementations: under any other name it would attend to all of them, without an
    error, as soon as a prompt is longer than the indexer's choice.

    Raises:
        UserError: there is such an indexer.
    """
    kinds: set[Any] = {type(module) for module in model.modules()}
    if any(map(_asks_for_names, kinds)):
        raise UserError(
            f"{type(model).__name__} is not supported: an indexer of its own chooses the "
            "tokens to attend to, and its code applies the choice only under the names of "
            "stock attention; it would need attention over kept tokens that takes the choice "
            "along"
        )


@functools.cache
def _asks_for_names(kind: Any) -> bool:
    """Whether the code of a module depends on the name of the attention."""
    try:
        source = inspect.getsource(kind.forward)
    except (OSError, TypeError):
        return False  # code without source: nothing is known of it
    return re.search(r"_attn_implementation (not )?in\b", source) is not None
