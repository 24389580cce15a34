"""Whether a model can be compressed here, and whether a head mask is one of that model."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from catekv.commands.doctor_findings import Check, Findings
from catekv.errors import UserError
from catekv.evaluation.records import environment
from catekv.loading import read_config, unreadable_file
from catekv.methods.head_mask import HeadMask
from catekv.models.shape import config_hash
from catekv.prefill.sizes import GIB


def examine_fit(findings: Findings, model: str | None, mask: str | None) -> None:
    """Add facts and checks of a model and a mask; no weights are read."""
    config = _read_config(findings, model) if model is not None else None
    if config is not None:
        _examine_model(findings, config)
        closed = unreadable_file(Path(str(model)))
        if closed is not None:
            reason = f"no permission to read {closed}; change its mode"
            findings.checks.append(Check("model files", False, reason))
        else:
            _examine_files(findings, Path(str(model)))
    if mask is not None:
        _examine_mask(findings, mask, config)


def _read_config(findings: Findings, model: str) -> Any:
    try:
        return read_config(model)
    except UserError as error:
        findings.checks.append(Check("model", False, str(error)))
        return None


def _examine_model(findings: Findings, config: Any) -> None:
    from catekv.models.compat import context_window, text_config
    from catekv.prefill.sizes import sizes_of_config

    text = text_config(config)
    kinds = _layer_kinds(config)
    other = Counter(kind for kind in kinds if kind)
    facts = {
        "architecture": ", ".join(getattr(config, "architectures", None) or [config.model_type]),
        "window": f"{context_window(config) or 'unknown'} tokens",
        "sliding window": f"{getattr(text, 'sliding_window', None) or 'none'} tokens, "
        f"{other.total()} of {len(kinds)} layers are not full "
        f"attention{''.join(f', {count} {kind}' for kind, count in other.items())}",
        "configuration": config_hash(config),
    }
    findings.facts["model"] = facts
    shape = _probe(findings, config)
    if shape is None:
        return
    facts["shape"] = (
        f"{shape.layers} layers, {shape.query_heads} query heads, {shape.kv_heads} KV heads of "
        f"{shape.head_dim}"
    )
    sizes = sizes_of_config(config)
    weights = sizes.weight_bytes
    free = environment.free_memory_bytes(_device())
    facts["weights"] = f"{weights / GIB:.3g} GiB in 16 bits"
    facts["full cache"] = f"{sum(sizes.full_layer_bytes(1)) / 1024:.1f} KiB per token in 16 bits"
    if free is not None:
        fits = weights <= free
        reason = f"{weights / GIB:.3g} GiB of weights, {free / GIB:.1f} GiB free on {_device()}"
        if not fits:
            reason += "; `catekv plan` says what fits, torchrun shares a model among GPUs"
        findings.checks.append(Check("model in memory", fits, reason))


def _examine_files(findings: Findings, folder: Path) -> None:
    """Whether every file of weights is as long as its header says; none are read."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        try:
            with safe_open(file, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            reason = f"{file} is torn or no file of weights ({error}); download it again"
            findings.checks.append(Check("model files", False, reason))


def _layer_kinds(config: Any) -> list[str]:
    """Of every layer what it keeps in its own way, in words; nothing where it is compressed."""
    from catekv.cache.cache import RaggedCache
    from catekv.cache.layer import RaggedLayer
    from catekv.cache.plain_layers import kind_of

    layers = RaggedCache(config, None).layers
    return ["" if isinstance(layer, RaggedLayer) else kind_of(layer) for layer in layers]


def _device() -> str:
    from catekv.loading import resolve_device

    return str(resolve_device("auto"))


def _probe(findings: Findings, config: Any) -> Any:
    """The model's shape as its attention layers are, found without allocating weights."""
    from catekv.cache.probe import probe
    from catekv.loading import without_weights

    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", UserWarning)
            shape = probe(without_weights(config))
    except UserError as error:
        findings.checks.append(Check("attention", False, str(error)))
        return None
    except (ValueError, RuntimeError, NotImplementedError, AttributeError, TypeError) as error:
        reason = f"{config.model_type} cannot be examined without its weights: {error}"
        findings.checks.append(Check("attention", False, reason))
        return None
    nothing = [str(one.message) for one in said if "nothing will be compressed" in str(one.message)]
    findings.checks.append(
        Check("attention", not nothing, nothing[0] if nothing else "can be compressed")
    )
    return shape


def _examine_mask(findings: Findings, mask: str, config: Any) -> None:
    try:
        found = HeadMask.load(mask, default_ratio=0.4)
    except UserError as error:
        findings.checks.append(Check("mask", False, str(error)))
        return
    findings.facts["mask"] = {
        "shape": f"{found.layers} layers x {found.kv_heads} KV heads",
        "adaptive": f"{int(found.adaptive.sum())} of {found.adaptive.numel()} at ratio "
        f"{found.nominal_ratio:g}",
        "made for": str(found.meta.get("model") or "unknown"),
    }
    if config is None:
        return
    try:
        found.validate(config)
    except UserError as error:
        findings.checks.append(Check("mask", False, str(error)))
        return
    made_for = found.meta.get("config_hash")
    if made_for not in (None, config_hash(config)):
        reason = (
            f"it was made for configuration {made_for} ({found.meta.get('model')}), the model's is "
            f"{config_hash(config)}; make one for this model with ./run_headmask.sh"
        )
        findings.checks.append(Check("mask", False, reason))
        return
    same = "made for this configuration" if made_for else "same shape, origin not recorded"
    findings.checks.append(Check("mask", True, same))
