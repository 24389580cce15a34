"""Whole models: a recorded step must choose what an ordinary step chooses, padding included."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bench.cases import Case, Result, Stage
from bench.checks.compare import checked, relative_error
from catekv import CateKVModel, HeadMask, methods
from catekv.decode.context import Context
from catekv.decode.step import DecodeStep
from catekv.kernels.dispatch import VARIABLE
from catekv.methods.base import Method

#: Relative error of logits after a few layers on another path.
LOGIT_TOLERANCE = {"float32": 2e-4, "bfloat16": 1e-2}
_COMMON = {
    "vocab_size": 512, "intermediate_size": 512, "num_hidden_layers": 3,
    "max_position_embeddings": 4096, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": None,
    "tie_word_embeddings": False,
}  # fmt: skip
#: Llama with groups of four, Qwen with biases and groups of seven, Phi-3 with longrope and d96.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": (
        "llama",
        {"hidden_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 2},
    ),
    "qwen2": (
        "qwen2",
        {"hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2},
    ),
    "phi3": (
        "phi3",
        {
            "hidden_size": 768, "num_attention_heads": 8, "num_key_value_heads": 8,
            "original_max_position_embeddings": 1024, "sliding_window": None,
            "rope_parameters": {
                "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 48,
                "long_factor": [1.5] * 48, "original_max_position_embeddings": 1024,
            },
        },
    ),
}  # fmt: skip


def cases(stage: Stage) -> list[Case]:
    """Every family alone and as a padded batch."""
    found = []
    for family in ("llama",) if stage.tiny else FAMILIES:
        for dtype in ("float32",) if stage.tiny else LOGIT_TOLERANCE:
            for padded in (False, True):
                name = f"model {family} {dtype}{' padded batch' if padded else ''}"
                run = functools.partial(check, stage, name, family, dtype, padded)
                found.append(Case(name, run, 6.0))
    return found


@functools.cache
def _model(stage: Stage, family: str, dtype: str) -> CateKVModel:
    from transformers import AutoConfig

    kind, values = FAMILIES[family]
    changes: dict[str, Any] = {}
    if stage.tiny:
        changes = {"hidden_size": 128, "num_attention_heads": 4, "head_dim": 64}
        changes |= {"num_hidden_layers": 2}
    config = AutoConfig.for_model(kind, **{**_COMMON, **values, **changes})
    model = CateKVModel.from_config(config, dtype=dtype, device=stage.device)
    with torch.no_grad():
        for parameter in model.model.parameters():
            if parameter.ndim > 1:
                # wide enough for clear winners
                parameter.normal_(0.0, 0.06)
    return model


def _method(model: CateKVModel) -> Method:
    return methods.create(
        "catekv", head_mask=HeadMask.random(model.shape, 0.4), ratio=0.4, budget=64, window=16,
        init_tokens=8, recent_tokens=16, guard_tokens=8,
    )  # fmt: skip


@contextmanager
def _kernels(backend: str) -> Iterator[None]:
    """Within it this backend takes the place of ``auto``."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = backend
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        if before is not None:
            os.environ[VARIABLE] = before


def _decode(
    model: CateKVModel,
    context: Context,
    steps: int,
    graph: str,
    backend: str,
    fed: Tensor | None = None,
) -> tuple[Tensor, Tensor, DecodeStep]:
    """Chosen tokens [steps, batch], logits [steps, batch, vocabulary], and what decoded.

    ``fed`` are tokens to feed instead of the chosen ones, so that runs can be compared step by
    step.
    """
    with _kernels(backend), torch.no_grad():
        # small, so that it has to grow
        step = DecodeStep(
            model.model,
            context.cache.fork(),
            4,
            graph=graph,
            attention_mask=context.attention_mask,
        )
        tokens = context.last_logits.argmax(dim=-1, keepdim=True)
        chosen, seen = [], []
        for number in range(steps):
            logits = step(tokens)
            tokens = logits.argmax(dim=-1, keepdim=True)
            chosen.append(tokens[:, 0].clone())
            seen.append(logits.clone())
            if fed is not None:
                tokens = fed[number][:, None]
        return torch.stack(chosen), torch.stack(seen), step


def check(stage: Stage, name: str, family: str, dtype: str, padded: bool) -> Result:
    """Recorded and not recorded: the same logits at every step.

    In float32 the chosen tokens must be equal too, and the torch path must agree; in half precision
    logits tie, and paths round differently.
    """
    # Phi-3 meets the positions from which other rotary frequencies hold
    tokens, steps = (90, 3) if stage.tiny else (1010, 24)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 512, (3 if padded else 1, tokens), generator=generator)
    mask = None
    model = _model(stage, family, dtype)
    if padded:
        mask = torch.ones_like(ids)
        mask[1, :13] = 0
        mask[2, : tokens // 2] = 0
        mask = mask.to(model.device)
    context = model.prefill(ids.to(model.device), method=_method(model), attention_mask=mask)
    plain, wanted, _ = _decode(model, context, steps, "off", "triton")
    chosen, recorded, step = _decode(model, context, steps, "auto", "triton", plain)
    errors = {"recorded": relative_error(recorded, wanted)}
    if dtype == "float32":
        _, other, _ = _decode(model, context, steps, "off", "torch", plain)
        errors["torch"] = relative_error(other, wanted)
    equal = torch.equal(plain, chosen)
    captured = "recorded" if step.captured else f"not recorded ({step.reason})"
    result = checked(name, errors, LOGIT_TOLERANCE[dtype], getattr(torch, dtype))
    result.rows[0]["errors"] += f", tokens {'equal' if equal else 'differ'}"
    result.note = f"{captured}, tokens {'equal' if equal else 'differ'} with and without a graph"
    result.wrong |= dtype == "float32" and not equal
    result.wrong |= not stage.tiny and not step.captured
    return result
