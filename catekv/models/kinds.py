"""What is no decoder-only language model, refused before anything is tried with it."""

from __future__ import annotations

from typing import Any

import torch

from catekv.errors import UserError

#: Tokens of the causality check, and how far rounding may move logits by dtype.
_TOKENS = 8
_ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-8}


def refuse_other_kinds(model: Any) -> None:
    """Refuse what is no model, is wrapped, or is none that writes text from left to right.

    Raises:
        UserError: which says what was given and what to pass instead.
    """
    name = type(model).__name__
    inner = getattr(model, "module", None)
    if isinstance(model, torch.nn.Module) and isinstance(inner, torch.nn.Module):
        raise UserError(
            f"{name} wraps a model for training or several devices; pass the model inside of it "
            f"(.module, a {type(inner).__name__})"
        )
    config = getattr(model, "config", None)
    if (
        not isinstance(model, torch.nn.Module)
        or not hasattr(config, "get_text_config")
        or not callable(getattr(model, "get_input_embeddings", None))
    ):
        what = f"{model!r}" if isinstance(model, str | type(None)) else f"a {name}"
        raise UserError(
            f"{what} is no transformers model; pass a causal language model, or load one with "
            "CateKVModel.from_pretrained(path)"
        )
    refuse_adapters(model)
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"{name} has an encoder and a decoder; only decoder-only models read their prompt "
            "into the cache that is compressed"
        )
    if not _writes_text(model):
        raise UserError(
            f"{name} has no language-modelling head; load the checkpoint with AutoModelForCausalLM"
        )


def refuse_adapters(model: Any) -> None:
    """Refuse active PEFT adapters that are more than other weights.

    Virtual tokens before every forward would come again with every question, in the midst of the
    context; an adapter that depends on the whole prompt differs between its parts.
    """
    adapters = getattr(model, "peft_config", None)
    if not isinstance(adapters, dict):
        return
    active = getattr(model, "active_adapters", None)
    try:
        active = active() if callable(active) else active
    except ValueError:
        # transformers' own method says so where no adapter was loaded by it
        active = None
    if active is None:
        active = getattr(model, "active_adapter", None) or list(adapters)
    for adapter in [active] if isinstance(active, str) else active:
        config = adapters.get(adapter)
        kind = getattr(config, "peft_type", None)
        kind = str(getattr(kind, "value", kind))
        reason = None
        if getattr(config, "is_prompt_learning", False):
            reason = "puts virtual tokens before every forward, questions too"
        elif getattr(config, "alora_invocation_tokens", None):
            reason = "begins in the midst of a prompt"
        elif kind == "XLORA":
            reason = "reads a prompt twice"
        if reason is not None:
            raise UserError(
                f"the active adapter {adapter!r} ({kind}) {reason}, which a compressed context "
                "cannot take; use an adapter that only changes weights (LoRA), or the model "
                "without it"
            )


def model_class(config: Any) -> Any:
    """What of transformers makes the model of a configuration: ``AutoModelForCausalLM``, or, where
    a decoder comes only inside of a model that reads pictures too, the class of those."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto import modeling_auto

    kind = type(config)
    if (
        kind not in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
        and kind in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    ):
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def without_weights(config: Any) -> Any:
    """The causal language model of a configuration on the meta device, in bfloat16.

    Raises:
        UserError: transformers has none, or it is an encoder.
    """
    try:
        with torch.device("meta"):
            # torch knows the grouped products of experts without weights in no other number format
            model = model_class(config).from_config(config, dtype=torch.bfloat16)
    except ValueError as error:
        # the second line lists all that there are
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{config.model_type} is no causal language model of transformers ({reason}); pass one"
        ) from error
    refuse_unless_causal(model)
    return model


def _writes_text(model: Any) -> bool:
    can = getattr(model, "can_generate", None)
    if callable(can) and can():
        return True
    head = getattr(model, "get_output_embeddings", None)
    return callable(head) and head() is not None


@torch.no_grad()
def refuse_unless_causal(model: Any) -> None:
    """Refuse a model in which tokens see those after them, as encoders do.

    Tried and not asked for: some decoders have no word for it in their configuration.

    Raises:
        UserError: the model is an encoder, or its configuration makes it one.
    """
    weight = model.get_input_embeddings().weight
    if weight.device.type == "meta":
        # nothing to compare: a shape without weights, or weights that are elsewhere
        says = {getattr(module, "is_causal", None) for module in model.modules()}
        if False in says and True not in says:
            raise _encoder(model)
        return
    ids = torch.arange(2 * _TOKENS, device=weight.device).view(2, _TOKENS) % weight.shape[0]
    ids[:, 0] = ids[0, 0]
    name = type(model).__name__
    try:
        logits = model(ids, use_cache=False).logits[:, 0].float()
    except Exception as error:
        raise UserError(f"{name} does not run on a few tokens: {error}") from error
    scale = float(logits.abs().max())
    difference = float((logits[0] - logits[1]).abs().max())
    if difference > _ROUNDING.get(weight.dtype, 2e-2) * max(scale, 1e-3):
        raise _encoder(model)


def _encoder(model: Any) -> UserError:
    remedy = ""
    if getattr(model.config, "is_decoder", True) is False:
        remedy = ", or set is_decoder=True in its configuration if it was trained so"
    return UserError(
        f"{type(model).__name__} lets tokens see those after them, as an encoder; pass a "
        f"causal language model{remedy}"
    )
