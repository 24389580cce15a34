"""What becomes of a decoder here: as the stock model under an infinite budget, or refused."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from scenarios import random_ids
from small_decoders import NOT_TRIED, small_decoder
from tiny_models import KeepEverything, RandomKeep

from catekv.cache import plain_layers
from catekv.cache.cache import compressing_layers
from catekv.cache.continuation import feed, hides_padding
from catekv.errors import UserError
from catekv.model import CateKVModel

CONTEXT, STEPS = 48, 6


@dataclass(frozen=True)
class Finding:
    """How a decoder fared.

    Attributes:
        reason: why it is refused, or not tried; None: it runs.
        tried: whether a model of the kind was made.
        compressed: layers whose cache is compressed. others: what the other layers keep.
        continues_by: how it is fed behind a cache. hides_padding: whether rows may be padded.
        off: largest difference of logits from the stock model over a prompt's end and the steps of
            its greedy answer. same_tokens: whether the answer is the stock model's.
        share: kept share under a finite budget.
    """

    reason: str | None = None
    tried: bool = True
    compressed: int = 0
    others: tuple[str, ...] = ()
    continues_by: str = ""
    hides_padding: bool = True
    off: float = 0.0
    same_tokens: bool = True
    share: float = 1.0


def walk(name: str, **changes: Any) -> Finding:
    """Try one kind of decoder, small and with random weights, one sequence in fp32.

    Args:
        name: of the kind. changes: of its small configuration.
    """
    if name in NOT_TRIED:
        return Finding(NOT_TRIED[name], tried=False)
    model = small_decoder(name, **changes)
    with warnings.catch_warnings():
        # a model without anything to compress says so, and so does one that cannot run in chunks
        warnings.simplefilter("ignore", UserWarning)
        try:
            return _compared(model)
        except UserError as error:
            prefix = f"{type(model).__name__} "
            reason = str(error).removeprefix(prefix).removeprefix("is not supported: ")
            return Finding(reason.splitlines()[0])


@torch.no_grad()
def _compared(model: Any) -> Finding:
    ids = random_ids(1, CONTEXT, seed=1)
    try:
        right = _stock_answer(model, ids)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        # what transformers cannot generate with either is refused below
        CateKVModel(model, KeepEverything())
        raise
    wrapped = CateKVModel(model, KeepEverything())
    tokens = [int(logits.argmax()) for logits in right]
    context = wrapped.prefill(ids)
    cache = context.cache.fork()
    found = [context.last_logits]
    for token in tokens[:-1]:
        found.append(feed(wrapped.model, torch.tensor([[token]]), cache)[:, -1])
    off = max(float((one - other).abs().max()) for one, other in zip(found, right, strict=True))
    finite = wrapped.prefill(ids, method=RandomKeep())
    assert len(wrapped.generate_ids([7, 8], finite, 4, []).tokens) == 4
    compressed = compressing_layers(wrapped.config)
    others = [
        plain_layers.kind_of(layer)
        for index, layer in enumerate(context.cache.layers)
        if index not in compressed
    ]
    return Finding(
        compressed=len(compressed),
        others=tuple(dict.fromkeys(others)),
        continues_by=wrapped.traits.continues_by,
        hides_padding=hides_padding(wrapped.model),
        off=off,
        same_tokens=wrapped.generate_ids([], context, STEPS, []).tokens == tokens,
        share=finite.kept_share(),
    )


def _stock_answer(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    """Logits [1, vocabulary] that the greedy answer of the stock model is taken from."""
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=STEPS,
        do_sample=False,
        eos_token_id=None,
        forced_eos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return list(output.logits)
