"""What loading a model needs: devices, numbers formats, methods by name, and the support probe."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from catekv import methods
from catekv.attention import NAMES
from catekv.cache import RaggedCache
from catekv.errors import UserError
from catekv.methods.base import Method


def make_method(method: str | Method, **options: Any) -> Method:
    """A method from its name and the options that are not None.

    Raises:
        UserError: unknown name or option, or options beside a ready-made method.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(method, Method):
        if given:
            raise UserError(
                f"options {', '.join(given)} have no effect beside a ready-made method; set them "
                "when making it"
            )
        return method
    return methods.create(method, **given)


def resolve_device(device: str | torch.device) -> torch.device:
    """``auto`` or the name of a device, checked to exist."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"unknown device {device!r}; use auto, cpu, cuda or cuda:N") from error
    if target.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (target.index or 0) >= count:
            raise UserError(
                f"device {str(device)!r} was asked for, but {count} CUDA devices are usable here; "
                "use device='cpu' or install a CUDA build of torch"
            )
    return target


def probe(model: Any) -> None:
    """Check with a one-token forward that every layer's keys reach our attention function.

    Raises:
        UserError: if the architecture cannot be compressed, with the reason.
    """
    name = type(model).__name__
    cache = RaggedCache(model.config, None, hold_window=1)
    if not cache.ragged_layers:
        warnings.warn(
            f"{name} has no layer with full attention, so nothing will be compressed", stacklevel=3
        )
        return
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.get_input_embeddings().weight.device)
    with torch.no_grad():
        try:
            model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{name} does not run with a compressed cache: {error}") from error
    fed = [layer for layer in cache.ragged_layers if layer.seen]
    deaf = [layer.index for layer in fed if layer.pending]
    if deaf or not fed:
        which = f"layers {deaf}" if deaf else "its layers"
        raise UserError(
            f"{name} is not supported: {which} do not hand the cache's keys to the attention "
            "function unchanged, so queries and keys cannot be observed together"
        )


def attention_base(name: str) -> str | None:
    if name == "auto":
        return None
    if name not in NAMES:
        raise UserError(f"unknown attention {name!r}; use auto, {', '.join(NAMES)}")
    return name


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> str | torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise UserError(f"unknown dtype {dtype!r}; use auto, float32, bfloat16 or float16")
    return found


def load_tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError):
        # token ids work without one; text asks for it by name
        return None
