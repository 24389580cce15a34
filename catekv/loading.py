"""What loading a model needs: devices, number formats, methods by name, checks before weights."""

from __future__ import annotations

import contextlib
import copy
import os
import re
from pathlib import Path
from typing import Any

import torch

from catekv import methods
from catekv.cache.attention import NAMES, register_attention
from catekv.cache.probe import probe
from catekv.errors import UserError
from catekv.methods.base import Method
from catekv.models import kinds, presets, row_rotary
from catekv.models.compat import (
    attention_sizes,
    bars_on_terminals_only,
    set_attention,
    shares_kv_heads,
    tensor_parallel_options,
    text_config,
)
from catekv.models.shape import ModelShape
from catekv.models.sharding import group_position
from catekv.models.source import ModelSource, model_source

#: The attribute of transformers' models that says which base they run with.
_SUPPORT = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn"}
#: what old checkpoints hold that their model computes by itself
_DERIVED = ("rotary_emb.inv_freq", "attn.masked_bias", "attn.bias")


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
    if not isinstance(method, str):
        raise UserError(
            f"{method!r} is no method; give the name of one, or make one with "
            "catekv.methods.create(name, ...)"
        )
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


def refuse_early(method: Method | None, config: Any) -> None:
    """Refuse a method or head mask that does not fit a model, before its weights are allocated.

    Raises:
        UserError: from the method's own check.
    """
    if method is None:
        return
    named = ModelShape(text_config(config).num_hidden_layers, *attention_sizes(config))
    try:
        method.validate(named)
        return
    except UserError:
        shape = _shape_without_weights(config)
    if shape is not None:
        method.validate(shape)


def without_weights(config: Any) -> Any:
    """A model with catekv attention on the meta device, in bfloat16."""
    model = kinds.without_weights(config)
    attach_attention(model)
    return model


def _shape_without_weights(config: Any) -> ModelShape | None:
    """The shape that ``probe`` would find; None if that needs the real model.

    Some configurations give numbers that their model does not use.
    """
    try:
        return probe(without_weights(config))
    except Exception:
        # whatever it is, loading the model says it with more context
        return None


def refuse_incomplete(model: Any, name: str, loading: dict[str, Any]) -> None:
    """Refuse weights that are not those of the configuration: transformers draws what is missing
    at random and leaves out what has no place, with no more than a warning.

    Args:
        model: the loaded model. name: of its checkpoint, for the message.
        loading: what ``from_pretrained(output_loading_info=True)`` says.

    Raises:
        UserError: weights are missing (tied ones are not), of another shape, or there are decoder
            layers or parts of them that the model does not have.
    """
    prefixes = {
        match[1] for key in model.state_dict() if (match := re.match(r"(.*?\blayers\.)\d+\.", key))
    }
    surplus = [
        key
        for key in loading.get("unexpected_keys", ())
        if key.startswith(tuple(prefixes)) and not key.endswith(_DERIVED)
    ]
    for what, keys in (
        ("lacks", loading.get("missing_keys", ())),
        ("has another shape for", [key[0] for key in loading.get("mismatched_keys", ())]),
        ("has more than its configuration says:", surplus),
    ):
        if keys:
            first = min(keys)
            more = f" and {len(keys) - 1} more weights" if len(keys) > 1 else ""
            raise UserError(
                f"{name} is no checkpoint of its configuration: it {what} {first}{more}; load a "
                "complete one, or correct its config.json"
            )


def sharing_options(config: Any, device: torch.device) -> dict[str, Any]:
    """Options of transformers' ``from_pretrained`` that share a model among all processes.

    Raises:
        UserError: there is only one process, the model cannot be shared (evenly), or the device is
            not the one that transformers takes.
    """
    _, processes = group_position()
    if processes == 1:
        raise UserError(
            "tensor parallelism needs several processes; start with torchrun --nproc_per_node N"
        )
    if device.type == "cpu" and torch.cuda.is_available():
        raise UserError(
            "tensor parallelism takes the CUDA devices of this machine; hide them with "
            "CUDA_VISIBLE_DEVICES='' to run it on the CPU"
        )
    options = tensor_parallel_options(config, processes)
    heads = attention_sizes(config).kv_heads
    if shares_kv_heads(config) and heads % processes:
        raise UserError(
            f"{heads} KV heads cannot be shared evenly by {processes} processes; use a number of "
            f"processes that divides {heads}"
        )
    return options


def attention_base(name: str) -> str | None:
    """The base implementation a user asked for; None for ``auto``."""
    if name == "auto":
        return None
    if name not in NAMES:
        raise UserError(f"unknown attention {name!r}; use auto, {', '.join(NAMES)}")
    return name


def attach_attention(model: Any, base: str = "auto") -> str:
    """Give a model catekv attention, and rotary tables that follow each row of a batch; returns the
    base that computes its dense attention.

    Args:
        base: one of ``NAMES``, or ``auto``: what the model runs with now.

    Raises:
        UserError: a base that this model, or catekv, does not have.
    """
    now = text_config(model.config)._attn_implementation or "eager"
    now = {ours: name for name, ours in NAMES.items()}.get(now, now)
    chosen = attention_base(base) or now
    if chosen not in NAMES:
        raise UserError(
            f"the model runs with attention {chosen!r}, which compressed layers cannot build on; "
            f"load it with attn_implementation= one of {', '.join(NAMES)}"
        )
    supports = getattr(model, f"_supports_{_SUPPORT.get(chosen, chosen)}", True)
    if chosen != now and chosen != "eager" and not supports:
        raise UserError(
            f"{type(model).__name__} does not run with attention {chosen!r}; leave it out, or use "
            "'eager'"
        )
    register_attention()
    set_attention(model, NAMES[chosen])
    row_rotary.install(model)
    return chosen


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> str | torch.dtype:
    """A torch dtype, or ``auto`` where the checkpoint's own is to be used."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise UserError(f"unknown dtype {dtype!r}; use auto, float32, bfloat16 or float16")
    return found


def read_config(name: str) -> Any:
    """The configuration of a checkpoint (see :func:`catekv.models.source.model_source`).

    Raises:
        UserError: none, or one that transformers cannot make sense of.
    """
    from transformers import AutoConfig

    source = model_source(name)
    try:
        return AutoConfig.from_pretrained(source.place, **source.options)
    except Exception as error:
        # every kind of model checks its values in its own way
        if source.file is not None:
            raise UserError(
                f"GGUF file {name!r} cannot be read ({_reason(source, error)}); give a complete "
                "one of an architecture that transformers reads, or the model's own checkpoint"
            ) from error
        raise UserError(
            f"model {name!r} has no readable configuration ({first_line(error)}); give the folder "
            "of a checkpoint, or a hub name with the network or a filled cache"
        ) from error


def _reason(source: ModelSource, error: Exception) -> str:
    closed = unreadable_file(source.path) if source.local else None
    return first_line(error) if closed is None else f"no permission to read {closed}"


def unreadable_file(folder: Path) -> Path | None:
    """A file of a checkpoint that may not be read; libraries call it missing, or say nothing.

    Args:
        folder: of the checkpoint, or a checkpoint that is one file.
    """
    if not folder.is_dir():
        return folder if folder.is_file() and not os.access(folder, os.R_OK) else None
    return next(
        (
            file
            for file in sorted(folder.iterdir())
            if file.is_file() and not os.access(file, os.R_OK)
        ),
        None,
    )


def first_line(error: BaseException) -> str:
    """What an error of a library says, in one line."""
    return next((line for line in str(error).splitlines() if line.strip()), repr(error)).strip()


def load_tokenizer(name: str) -> Any:
    """The checkpoint's tokenizer, or None if it has none."""
    from transformers import AutoTokenizer

    source = model_source(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.place, **source.options)
    except (OSError, ValueError, KeyError):
        # token ids work without one; text asks for it by name
        return None
    except Exception as error:
        # every kind of tokenizer checks its values in its own way
        raise UserError(
            f"the tokenizer of model {name!r} cannot be read ({first_line(error)}); restore its "
            "files, such as tokenizer_config.json"
        ) from error
    longest = getattr(tokenizer, "model_max_length", 0)
    if not isinstance(longest, (int, float)):
        # every text is measured by it, and transformers takes it as it comes
        raise UserError(
            f"the tokenizer of model {name!r} has model_max_length {longest!r}, no number; "
            "correct its tokenizer_config.json"
        )
    return tokenizer


def load_checkpoint(
    path: str | Path,
    method: Method,
    dtype: str | torch.dtype,
    device: str | torch.device,
    attention: str,
    tensor_parallel: bool,
) -> tuple[Any, Any]:
    """The transformers model and the tokenizer (None if there is none) of a checkpoint.

    Args: see :meth:`catekv.CateKVModel.from_pretrained`; ``method`` is asked whether it fits before
        any weight is read.
    """
    target = resolve_device(device)
    base = attention_base(attention)
    source = model_source(path)
    name = source.name
    if source.local and source.file is None and not (source.path / "config.json").is_file():
        raise UserError(f"{name} is no checkpoint: it has no config.json")
    try:
        config = read_config(name)
        refuse_early(method, config)
        shared = sharing_options(config, target) if tensor_parallel else {}
        with bars_on_terminals_only() if source.file else contextlib.nullcontext():
            loaded: Any = kinds.model_class(config).from_pretrained(
                source.place,
                config=config,
                dtype=resolve_dtype(dtype, target),
                attn_implementation=base,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refuse_incomplete() names them
                **shared,
                **source.options,
            )
        model, report = loaded
        refuse_incomplete(model, name, report)
        if not shared:
            model.to(target)
    except UserError:
        raise
    except Exception as error:
        # torn weights, pickles and shapes have each their own errors
        closed = unreadable_file(source.path)
        reason = first_line(error) if closed is None else f"no permission to read {closed}"
        hint = "" if source.local else " (for a hub name the network or a filled cache)"
        raise UserError(
            f"cannot load {name}{hint}: {reason}; pass the folder of a complete decoder "
            "checkpoint, or a complete GGUF file"
        ) from error
    return model, load_tokenizer(name)


def random_model(
    config: Any,
    method: Method | None,
    dtype: str | torch.dtype,
    device: str | torch.device,
    attention: str,
    layers: int | None,
    seed: int,
) -> tuple[Any, str]:
    """A transformers model of some shape with random weights, and what to call it.

    Args: see :meth:`catekv.CateKVModel.from_config`.
    """
    target = resolve_device(device)
    base = attention_base(attention)
    if isinstance(config, str):
        name = config
        config = presets.preset_config(config, layers)
    else:
        name = type(config).__name__
        config = copy.deepcopy(config)
        if layers is not None:
            text_config(config).num_hidden_layers = layers
    refuse_early(method, config)
    kind = resolve_dtype(dtype, target)
    if kind == "auto":
        kind = torch.bfloat16
    generators = [target.index or 0] if target.type == "cuda" else []
    with torch.random.fork_rng(devices=generators), target:
        torch.manual_seed(seed)
        make = kinds.model_class(config).from_config
        model = make(config, dtype=kind, attn_implementation=base)
    return model, f"{name} (random weights)"
