"""A reference mask from the outcome itself: which single head hurts most when it is compressed.

Feasible for small models and short prompts only (one compressed context per head and sample). The
mask is an upper reference beside statistics that look at attention alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from catekv.calibration.head_masks import answers
from catekv.methods import create
from catekv.methods.head_mask import HeadMask
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
        positive where compression hurts.
    """
    layers, heads = model.shape.layers, model.shape.kv_heads
    methods = {}
    for layer in range(layers):
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
    losses = torch.stack([sums[answers.FULL] - sums[label] for label in methods]) / count
    return losses[:, 0].view(layers, heads), losses[:, 1].view(layers, heads)


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
    """Adaptive are the heads with the largest loss of accuracy, then of log probability.

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
    order = sorted(
        range(len(flat)), key=lambda head: (-round(flat[head][0], 9), -flat[head][1], head)
    )
    recipe = {
        "kind": "ablation",
        "samples": len(samples),
        "tasks": sorted({sample.task for sample in samples}),
        "questions": list(questions),
        "accuracy_loss": accuracy.tolist(),
        "log_probability_loss": log_probability.tolist(),
    }
    layers, heads = accuracy.shape
    return HeadMask.from_ratio(order, ratio, layers, heads, {"recipe": recipe})
