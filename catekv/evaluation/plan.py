"""What compression can give on paper: memory and decode bounds from a model's shape alone."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from catekv.errors import UserError
from catekv.evaluation import tables
from catekv.head_mask import check_ratio
from catekv.memory_model import GB, GIB, MemoryModel, kept_tokens

WEIGHT_BYTES = 2


def read_config(model: str | None) -> Any:
    """Configuration of a known shape, a local folder, or the embedded model (None).

    Raises:
        UserError: neither a known name nor a folder with a configuration.
    """
    from catekv import embedded, presets

    if model is not None and model.lower() in presets.available():
        return presets.preset_config(model)
    from transformers import AutoConfig

    path = str(embedded.path()) if model is None else model
    if model is not None and not Path(model).is_dir():
        raise UserError(
            f"{model!r} is neither a folder nor a known shape; known: "
            f"{', '.join(presets.available())}"
        )
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} holds no readable config.json; give a model folder") from error


def sizes_of(config: Any) -> MemoryModel:
    """Sizes of a model from its configuration; parameters are counted without allocating them."""
    import torch
    from transformers import AutoModelForCausalLM

    from catekv.transformers_compat import text_config

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    text = text_config(config)
    heads = text.num_attention_heads
    embedding = model.get_input_embeddings().weight.numel()
    return MemoryModel(
        layers=text.num_hidden_layers,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        embedding_parameters=0 if text.tie_word_embeddings else embedding,
        element_bytes=WEIGHT_BYTES,
    )


def describe(arguments: argparse.Namespace) -> str:
    """Table of full attention against CateKV for the command ``catekv plan``.

    Raises:
        UserError: numbers out of range or an unknown model.
    """
    for name in ("length", "budget", "batch_size"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    check_ratio(arguments.ratio)
    if not 0 < arguments.retention <= 1:
        raise UserError(f"retention {arguments.retention} is outside (0, 1]")
    sizes = sizes_of(read_config(arguments.model))
    length, batch = arguments.length, arguments.batch_size
    kept = min(
        float(length), kept_tokens(length, arguments.ratio, arguments.retention, arguments.budget)
    )
    header = ["", "full", "catekv", "ratio"]
    rows = [
        _row("tokens kept per head", length, kept, 1, 0),
        _row("cache GiB", sizes.cache_bytes(length) * batch, sizes.cache_bytes(kept) * batch, GIB),
        _row(
            "cache and weights GiB",
            sizes.resident_bytes(length, batch),
            sizes.resident_bytes(kept, batch),
            GIB,
        ),
        _row(
            "GB read per decode step",
            sizes.step_bytes(length, batch),
            sizes.step_bytes(kept, batch),
            GB,
        ),
    ]
    if arguments.bandwidth:
        per_second = arguments.bandwidth * GB / 1000
        rows.append(
            _row(
                "ms per decode step, at least",
                sizes.step_bytes(length, batch),
                sizes.step_bytes(kept, batch),
                per_second,
            )
        )
    bound = sizes.decode_bound(length, kept, batch)
    title = (
        f"{arguments.model or 'embedded'}: {length} tokens, batch {batch}, r {arguments.ratio:g}, "
        f"eta {arguments.retention:g}, b {arguments.budget}, {WEIGHT_BYTES}-byte weights and cache"
    )
    note = f"A decode step cannot become more than {bound:.2f}x faster."
    return f"{title}\n\n{tables.plain_table(header, rows)}\n\n{note}"


def _row(name: str, full: float, ours: float, unit: float, digits: int = 2) -> list[str]:
    return [name, f"{full / unit:.{digits}f}", f"{ours / unit:.{digits}f}", f"{full / ours:.2f}x"]
