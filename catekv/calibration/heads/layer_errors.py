"""What a layer's attention output loses where one head keeps a part of its entries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from catekv.methods.base import Observed
from catekv.methods.budgeted import Budgeted

#: Numbers of float32 outputs behind the projection that are held at once: 64 MiB.
_FLOATS = 1 << 24
#: What a sum of probabilities is at least: the smallest float32 of full precision.
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class LayerErrors:
    """One layer of one text.

    Attributes:
        errors: float64 [kv_heads, shares], squared error of the layer's attention output behind its
            projection, over its squared norm: sums over the later queries, one head compressed and
            all others whole.
        weight: squared norm of that output over that of the hidden states which it is added to:
            with it errors of different layers compare.
        changes: float64 [kv_heads, shares], first-order estimate of what the error does to the loss
            whose gradient was given: mean over the later queries of absolute values.
    """

    errors: Tensor
    weight: float
    changes: Tensor | None = None


def layer_errors(
    observed: Observed,
    context: int,
    selector: Budgeted,
    shares: Sequence[float],
    gradient: Tensor | None = None,
) -> LayerErrors:
    """The loss of every head at every kept share.

    The selector scores the context's entries with the context's own last queries. Errors are those
    of the queries behind the context, which the selector does not see; they attend to what the head
    keeps of the context and to each other.

    Args:
        observed: a whole text (batch 1) with its hidden states and output projection; its queries
            are the selector's window and all later ones.
        context: tokens of the context.
        selector: any method that scores tokens.
        shares: of the entries before the selector's edges, ascending from 0 to 1.
        gradient: of a loss by the outputs of all heads at the later queries, [queries, query_heads,
            head_dim].
    """
    later = observed.tokens - context
    assert observed.output_projection is not None
    assert observed.hidden_states is not None
    before = max(0, context - selector.edges())
    order = _best_first(observed, context, later, selector, before)
    counts = [round(share * before) for share in shares]
    heads = observed.keys.shape[1]
    projection = observed.output_projection.float().unflatten(0, (heads, -1))
    outputs = torch.zeros(later, projection.shape[-1], device=observed.keys.device)
    errors = torch.zeros(heads, len(counts), dtype=torch.float64)
    changes = torch.zeros_like(errors)
    for head in range(heads):
        kept = _outputs(observed, head, later, order[head], counts)
        # the last share is the whole head; [shares, queries, group * head_dim]
        weight = projection[head].reshape(-1, projection.shape[-1])
        outputs += kept[-1] @ weight
        if gradient is not None:
            slope = gradient.unflatten(1, (heads, -1))[:, head].flatten(1)
            change = ((kept - kept[-1]) * slope).sum(dim=-1).abs().mean(dim=-1)
            changes[head] = change.double().cpu()
        step = max(1, _FLOATS // (later * weight.shape[-1]))
        for first in range(0, len(counts), step):
            part = (kept[first : first + step] - kept[-1]) @ weight
            errors[head, first : first + step] = part.double().square().sum(dim=(1, 2)).cpu()
    hidden = observed.hidden_states[0, -later:].double().square().sum()
    total = outputs.double().square().sum()
    return LayerErrors(
        errors / float(total.clamp(min=1e-30)),
        float(total / hidden),
        None if gradient is None else changes,
    )


def _best_first(
    observed: Observed, context: int, later: int, selector: Budgeted, before: int
) -> Tensor:
    """Positions of the context before the edges by descending score: int64 [kv_heads, before]."""
    assert observed.hidden_states is not None
    alone = replace(
        observed,
        queries=observed.queries[:, :, : observed.queries.shape[2] - later],
        keys=observed.keys[:, :, :context],
        values=observed.values[:, :, :context],
        hidden_states=observed.hidden_states[:, :context],
    )
    scores = selector.token_scores(alone)[0, :, :before]
    return scores.sort(dim=-1, descending=True, stable=True).indices


def _outputs(
    observed: Observed, head: int, later: int, order: Tensor, counts: Sequence[int]
) -> Tensor:
    """Outputs of the later queries of one KV head's group, where the head keeps the ``counts``
    first entries of ``order`` and all behind them: float32 [counts, queries, group * head_dim]."""
    tokens, group = observed.tokens, observed.group
    members = slice(head * group, (head + 1) * group)
    queries = observed.queries[0, members, -later:].float() * observed.scaling
    logits = observed.form.cap_(queries @ observed.keys[0, head].float().mT)
    positions = torch.arange(tokens, device=logits.device)
    logits.masked_fill_(positions > positions[-later:, None], -torch.inf)
    sinks = observed.form.sinks
    if sinks is not None:
        # a column without a value that takes part in the softmax and is never evicted
        column = sinks[members].float()[:, None, None].expand_as(logits[..., :1])
        logits = torch.cat([logits, column], dim=-1)
    probability = logits.softmax(dim=-1)
    values = observed.values[0, head].float()
    always = len(order)
    # never as the rest of 1: what is left of a head that looks elsewhere may be less than rounding
    mass = probability[..., always:].sum(dim=-1)
    kept = probability[..., always:tokens] @ values[always:]
    ranked, ranked_values = probability[..., order], values[order]
    found, last = [], 0
    for count in counts:
        part = slice(last, count)
        mass = mass + ranked[..., part].sum(dim=-1)
        kept = kept + ranked[..., part] @ ranked_values[part]
        found.append((kept / mass.clamp(min=_TINY)[..., None]).transpose(0, 1).flatten(1))
        last = count
    return torch.stack(found)
