"""``atskv_metrics.json``: relevance, thresholds and tiers of one prompt, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from catekv.methods.atskv import control as control
from catekv.methods.atskv.method import ATSKV
from catekv.tasks.core.prompt import encode
from catekv.tasks.core.sample import Sample
from experiments.atskv.measuring import active_share, tier_bytes

if TYPE_CHECKING:
    from catekv.model import CateKVModel


def relevance_metrics(model: CateKVModel, sample: Sample, method: ATSKV) -> dict[str, Any]:
    """What the method thinks of a sample's context.

    Returns:
        ``relevance_scores``: per layer every token's, to four digits. ``thresholds``: per layer the
        one that its level gives. ``sparsity_level``: share of tokens that are not active.
        ``memory_usage``: bytes by tier.
    """
    prompt = encode(sample, model.tokenizer)
    dense = model.observe(prompt.context_ids, needs=method.needs)
    scores, thresholds = [], []
    for layer in range(model.shape.layers):
        relevance = method.relevance(dense.observed(layer))[0][0]
        level = method.prefill_level(dense.tokens, layer)
        beta = method.threshold_numbers(layer)[1]
        thresholds.append(float(control.threshold(relevance, level, beta)))
        scores.append([round(value, 4) for value in relevance.tolist()])
    context = dense.compress(method)
    tiers = tier_bytes(context)
    return {
        "relevance_scores": scores,
        "thresholds": thresholds,
        "sparsity_level": 1 - active_share(context),
        "memory_usage": {
            "active": tiers.active,
            "features": tiers.features,
            "passive": tiers.passive,
            "full": tiers.full,
        },
        "sample": {"task": sample.task, "index": sample.index, "tokens": dense.tokens},
    }
