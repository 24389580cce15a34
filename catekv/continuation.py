"""Feeding a model that has read something already, and finding out how that may be done.

Attention layers read any number of new tokens behind a cache. Recurrent and convolutional layers
of some models drop their state when several tokens come at once: they must be fed one by one.
"""

from __future__ import annotations

import inspect
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from catekv.cache import RaggedCache
from catekv.errors import UserError
from catekv.methods.full import Full
from catekv.ragged_layer import RaggedLayer
from catekv.transformers_compat import input_device, text_config

#: How a model may be continued behind a cache: any number of tokens in one forward, or one.
CHUNKS = "chunks"
SINGLE_TOKENS = "single tokens"
#: Columns of a trial without local windows; tokens that continue it.
TRIAL = 16
CONTINUED = 4
#: A trial at load reads past every window that is no longer than this.
LONGEST_TRIAL = 1024

_known: WeakKeyDictionary[torch.nn.Module, str] = WeakKeyDictionary()


def positions_of(attention_mask: Tensor) -> Tensor:
    """Position ids [batch, columns] of a left-padded batch: padding does not count."""
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp_(min=0)


def feed(
    model: Any, ids: Tensor, cache: Any, attention_mask: Tensor | None = None, last: int = 1
) -> Tensor:
    """Feed tokens behind what a cache has seen, as the model can take them; without gradients.

    Args:
        model: a transformers model with catekv attention.
        ids: int64 [batch, tokens], at least one token.
        cache: receives the tokens.
        attention_mask: [batch, columns seen + tokens], 0 on padding; None: no padding.
        last: columns whose logits are wanted.

    Returns:
        Logits [batch, last, vocabulary].
    """
    single = ids.shape[1] > 1 and continues_by(model) == SINGLE_TOKENS
    pieces = ids.split(1, dim=1) if single else (ids,)
    rows: list[Tensor] = []
    for piece in pieces:
        rows.append(_forward(model, piece, cache, attention_mask, last))
        rows = rows[-last:]
    return torch.cat(rows, dim=1)[:, -last:]


@torch.no_grad()
def _forward(
    model: Any, ids: Tensor, cache: Any, attention_mask: Tensor | None = None, last: int = 1
) -> Tensor:
    """One forward behind a cache; logits [batch, at most ``last``, vocabulary]."""
    past = int(cache.get_seq_length())
    end = past + ids.shape[1]
    options: dict[str, Any] = {}
    if attention_mask is not None:
        options["attention_mask"] = attention_mask[:, :end]
        options["position_ids"] = positions_of(attention_mask[:, :end])[:, past:]
    elif _takes_positions(model):
        # some models count from zero in every forward unless they are told
        options["position_ids"] = torch.arange(past, end, device=ids.device).expand(len(ids), -1)
    logits: Tensor = model(
        ids, past_key_values=cache, use_cache=True, logits_to_keep=last, **options
    ).logits
    return logits[:, -last:]


def _takes_positions(model: Any) -> bool:
    forward = getattr(model, "_orig_mod", model).forward
    return "position_ids" in inspect.signature(forward).parameters


def continues_by(model: torch.nn.Module) -> str:
    """:data:`CHUNKS` or :data:`SINGLE_TOKENS`; tried once per model, behind a compressed cache.

    Raises:
        UserError: behind a compressed cache that keeps everything the model computes something
            else than in one forward over all tokens.
    """
    if model not in _known:
        _known[model] = _try(model)
    return _known[model]


def trial_ids(model: Any, longest: int | None = LONGEST_TRIAL) -> Tensor:
    """Ids [1, tokens] to try a model with: more tokens than any of its windows that is not longer
    than ``longest`` (None: than any), fewer than those at which its positions change."""
    config = text_config(model.config)
    layers = DynamicCache(config=model.config).layers
    windows = [int(getattr(layer, "sliding_window", None) or 0) for layer in layers]
    wanted = TRIAL + max([w for w in windows if longest is None or w <= longest], default=0)
    rope = getattr(config, "rope_parameters", None) or {}
    parts = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    ends = [part.get("original_max_position_embeddings") for part in parts]
    ends.append(getattr(config, "max_position_embeddings", None))
    tokens = min([wanted, *(int(end) for end in ends if end)])
    vocabulary = int(config.vocab_size)
    special = {
        value
        for part in (model.config, config)
        for name, value in part.to_dict().items()
        if name.endswith(("token_id", "token_index")) and isinstance(value, int)
    }
    ordinary = [i for i in range(min(vocabulary, 4096)) if i not in special] or [0]
    ids = [ordinary[place * 31 % len(ordinary)] for place in range(tokens)]
    return torch.tensor([ids], device=input_device(model))


def difference(found: Tensor, right: Tensor) -> float:
    """Largest difference of logits, as a share of the largest right one."""
    right = right.float()
    scale = float(right.abs().max()) or 1.0
    return float((found.float() - right).abs().max()) / scale


def tolerance(model: Any, logits: Tensor) -> float:
    """What rounding alone may make of :func:`difference`."""
    exact = logits.dtype in (torch.float32, torch.float64)
    return 1e-4 if exact and not getattr(model, "is_quantized", False) else 0.03


@torch.no_grad()
def _try(model: Any) -> str:
    """See :func:`continues_by`."""
    if input_device(model).type == "meta":
        return CHUNKS  # a model without weights computes nothing
    ids = trial_ids(model)
    count = min(CONTINUED, ids.shape[1] - 1)
    if not count:
        return CHUNKS
    context, rest = ids[:, :-count], ids[:, -count:]
    right = model(ids, use_cache=False, logits_to_keep=count).logits[:, -count:]
    allowed = tolerance(model, right)
    cache = RaggedCache(model.config, Full(), context.shape[1])
    _forward(model, context, cache)

    def singly(used: Any) -> Tensor:
        return torch.cat([_forward(model, part, used) for part in rest.split(1, dim=1)], dim=1)

    try:
        at_once = difference(_forward(model, rest, cache.fork(), last=count), right)
    except UserError:
        raise
    except Exception:
        # some recurrent layers have no way to read several tokens behind a state
        at_once = float("inf")
    if at_once <= allowed:
        return CHUNKS
    own = singly(cache.fork())
    one_by_one = difference(own, right)
    if one_by_one <= max(allowed, at_once / 3):
        if one_by_one <= 10 * allowed:
            return SINGLE_TOKENS
    elif at_once <= 4 * allowed:
        return CHUNKS  # no worse than token by token: rounding
    stock = DynamicCache(config=model.config)
    _forward(model, context, stock)
    if difference(own, singly(stock)) <= allowed:
        return SINGLE_TOKENS  # the model itself, as transformers decodes with it
    layers = [layer.index for layer in cache.layers if isinstance(layer, RaggedLayer)]
    raise UserError(
        f"{type(model).__name__} is not supported: behind a compressed cache (layers {layers}) it "
        f"computes other logits than in one forward (off by {one_by_one:.1%}), although nothing "
        "was left out; run this model with its ordinary cache"
    )
