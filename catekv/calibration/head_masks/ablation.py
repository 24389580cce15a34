"""A reference mask from the outcome itself: which single head hurts most when it is compressed.

Feasible for small models and short prompts only (one compressed context per head and sample). The
mask is an upper reference beside statistics that look at attention alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from catekv.cache.cache import compressing_layers
from catekv.calibration.head_masks import answers
from catekv.methods import create
from catekv.methods.head_mask import HeadMask
from catekv.methods.head_votes import adaptive_count
from catekv.tasks.core.sample import Sample

if TYPE_CHECKING:
    from catekv.model import CateKVModel


def head_losses(
    model: CateKVModel,
    samples: Sequence[Sample],
    method_options: Mapping[str, Any],
    questions: Sequence[str] = ("agnostic",),
    *,
    chat_template: str = "auto",
    chunk_size: int = 8192,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """What is lost when one head alone is consistent and all others are adaptive.

    Args:
        method_options: of the method ``catekv``, without its mask.

    Returns:
        (accuracy, log_probability), fp64 [layers, kv_heads] each: mean loss against the full cache,
        positive where compression hurts. 0 in layers that are not compressed.
    """
    layers, heads = model.shape.layers, model.shape.kv_heads
    methods = {}
    compressing = compressing_layers(model.config)
    for layer in compressing:
        for head in range(heads):
            adaptive = torch.ones(layers, heads, dtype=torch.bool)
            adaptive[layer, head] = False
            methods[f"{layer}.{head}"] = create(
                "catekv", head_mask=HeadMask(adaptive), **method_options
            )
    found = answers.score_methods(
        model,
        samples,
        methods,
        questions,
        chat_template=chat_template,
        chunk_size=chunk_size,
        advance=advance,
    )
    sums = {label: torch.zeros(2, dtype=torch.float64) for label in (answers.FULL, *methods)}
    for answer in found:
        sums[answer.label] += torch.tensor(
            [answer.official, answer.log_probability], dtype=torch.float64
        )
    count = len(samples) * len(questions)
    losses = torch.zeros(layers, heads, 2, dtype=torch.float64)
    own = torch.stack([sums[answers.FULL] - sums[label] for label in methods]) / count
    losses[compressing] = own.view(-1, heads, 2)
    return losses[..., 0], losses[..., 1]


def ablation_mask(
    model: CateKVModel,
    samples: Sequence[Sample],
    ratio: float,
    method_options: Mapping[str, Any],
    questions: Sequence[str] = ("agnostic",),
    *,
    chat_template: str = "auto",
    chunk_size: int = 8192,
    advance: Callable[[], None] = lambda: None,
) -> HeadMask:
    """Adaptive are the heads with the largest loss of accuracy, then of log probability, among
    those of the layers that are compressed.

    Further ties go to the lower flat index. Losses stand in the mask's recipe.
    """
    accuracy, log_probability = head_losses(
        model,
        samples,
        method_options,
        questions,
        chat_template=chat_template,
        chunk_size=chunk_size,
        advance=advance,
    )
    flat = list(zip(accuracy.flatten().tolist(), log_probability.flatten().tolist(), strict=True))
    layers, heads = accuracy.shape
    compressing = compressing_layers(model.config)
    order = sorted(
        range(len(flat)),
        key=lambda head: (
            head // heads not in compressing,
            -round(flat[head][0], 9),
            -flat[head][1],
            head,
        ),
    )
    recipe = {
        "kind": "ablation",
        "samples": len(samples),
        "tasks": sorted({sample.task for sample in samples}),
        "questions": list(questions),
        "accuracy_loss": accuracy.tolist(),
        "log_probability_loss": log_probability.tolist(),
    }
    adaptive = adaptive_count(ratio, len(compressing) * heads)
    meta = {"ratio": ratio, "recipe": recipe}
    return HeadMask.from_order(order, adaptive, layers, heads, meta)
