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

from catekv.cache.cache import RaggedCache
from catekv.errors import UserError
from catekv.methods.full import Full
from catekv.models.compat import cache_argument, input_device, text_config

#: How a model may be continued behind a cache: any number of tokens in one forward, or one.
CHUNKS = "chunks"
SINGLE_TOKENS = "single tokens"
#: Columns of a trial without local windows; tokens that continue it.
TRIAL = 16
CONTINUED = 4
#: Columns of padding in a trial: no multiple of the blocks that some layers make of tokens.
PADDED = 3
#: A trial at load reads past every window that is no longer than this.
LONGEST_TRIAL = 1024

_known: WeakKeyDictionary[torch.nn.Module, str] = WeakKeyDictionary()
_hiding: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()


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
        ids, **cache_argument(model, cache), use_cache=True, logits_to_keep=last, **options
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


def hides_padding(model: torch.nn.Module) -> bool:
    """Whether a row that is padded on the left is read as it is alone; tried once per model.

    Some decoders number columns instead of tokens, whatever they are told (learned positions of the
    BART family), and some layers make blocks of columns.
    """
    if model not in _hiding:
        _hiding[model] = _try_padding(model)
    return _hiding[model]


def refuse_counted_padding(model: torch.nn.Module) -> None:
    """``UserError`` if padding changes what the model computes for a row."""
    if not hides_padding(model):
        raise UserError(
            f"{type(model).__name__} counts padding as tokens, so that rows of a batch would not "
            "get what they get alone; pass prompts of one length, or one at a time"
        )


@torch.no_grad()
def _try_padding(model: Any) -> bool:
    """See :func:`hides_padding`."""
    ids = trial_ids(model)[:, PADDED:]  # with its padding no longer than any other trial
    if input_device(model).type == "meta" or ids.shape[1] <= CONTINUED:
        return True
    right = model(ids, use_cache=False, logits_to_keep=CONTINUED).logits[:, -CONTINUED:]
    padded = torch.cat([ids[:, :1].expand(1, PADDED), ids], dim=1)
    mask = torch.ones_like(padded)
    mask[:, :PADDED] = 0
    context, rest = padded[:, :-CONTINUED], padded[:, -CONTINUED:]
    cache = RaggedCache(model.config, Full(), context.shape[1])
    _forward(model, context, cache, mask)
    found = feed(model, rest, cache, mask, last=CONTINUED)
    return difference(found, right) <= 4 * tolerance(model, right)


def trial_ids(model: Any, longest: int = LONGEST_TRIAL) -> Tensor:
    """Ids [1, tokens] to try a model with: more tokens than any of its windows that is not longer
    than ``longest``, fewer than those at which its positions change."""
    config = text_config(model.config)
    layers = DynamicCache(config=model.config).layers
    windows = [int(getattr(layer, "sliding_window", None) or 0) for layer in layers]
    wanted = TRIAL + max([w for w in windows if w <= longest], default=0)
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


def _try(model: Any) -> str:
    """See :func:`continues_by`."""
    if input_device(model).type == "meta":
        return CHUNKS  # a model without weights computes nothing
    ids = trial_ids(model)
    count = min(CONTINUED, ids.shape[1] - 1)
    if not count:
        return CHUNKS
    trial = _Trial(model, ids, count)
    trial.refuse_other_positions()
    return trial.verdict()


class _Trial:
    """A prompt read into a compressed cache that keeps everything, continued in both ways and
    compared with one forward over all of it."""

    def __init__(self, model: Any, ids: Tensor, count: int):
        self.model = model
        self.name = type(model).__name__
        self.context, rest = ids[:, :-count], ids[:, -count:]
        self.pieces = {CHUNKS: (rest,), SINGLE_TOKENS: rest.split(1, dim=1)}
        with torch.no_grad():
            self.right = model(ids, use_cache=False, logits_to_keep=count).logits[:, -count:]
        self.allowed = tolerance(model, self.right)

    def refuse_other_positions(self) -> None:
        """``UserError`` if the model numbers its tokens otherwise than from zero."""
        if not _takes_positions(self.model):
            return
        ids = torch.cat([self.context, self.pieces[CHUNKS][0]], dim=1)
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        with torch.no_grad():
            told = self.model(ids, use_cache=False, position_ids=positions).logits
        found = difference(told[:, -self.right.shape[1] :], self.right)
        if found > self.allowed:
            raise UserError(
                f"{self.name} is not supported: told nothing it does not number its tokens from "
                "zero, as models do whose positions begin behind the id of their padding; it would "
                "need positions with its own beginning in every forward behind a cache"
            )

    def read(self, cache: Any) -> Any:
        """The cache after the prompt."""
        _forward(self.model, self.context, cache)
        return cache

    def new_cache(self) -> RaggedCache:
        return RaggedCache(self.model.config, Full(), self.context.shape[1])

    def logits(self, way: str, cache: Any) -> Tensor:
        """Logits of the continuation, fed in one way behind what the cache has read."""
        last = self.pieces[CHUNKS][0].shape[1]
        parts = [_forward(self.model, part, cache, last=last) for part in self.pieces[way]]
        return torch.cat(parts, dim=1)

    def verdict(self) -> str:
        try:
            cache = self.read(self.new_cache())
            way, off = self._better(cache)
            if way is not None:
                # the second question to a context: nothing of the first may have stayed
                again = difference(self.logits(way, cache.fork()), self.right)
                if again <= max(off, self.allowed):
                    return way
            cache = self.read(self.new_cache())
            first = self.logits(SINGLE_TOKENS, cache.fork())
            second = self.logits(SINGLE_TOKENS, cache.fork())
            stock = self.logits(SINGLE_TOKENS, self.read(DynamicCache(config=self.model.config)))
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{self.name} does not run with a compressed cache: {error}") from error
        off = difference(first, stock)
        if off > self.allowed:
            raise UserError(
                f"{self.name} is not supported: behind a compressed cache that has everything it "
                f"computes other logits than behind an ordinary one (off by {off:.1%}); run this "
                "model with its ordinary cache"
            )
        if difference(second, first) > self.allowed:
            raise UserError(
                f"{self.name} is not supported: it keeps a state of its own outside of the cache, "
                "so a context cannot be asked twice; run this model with its ordinary cache"
            )
        return SINGLE_TOKENS  # what transformers generates with it, if not what one forward gives

    def _better(self, cache: RaggedCache) -> tuple[str | None, float]:
        """The way to continue, and by how much its logits are off; None: neither is right."""
        try:
            at_once = difference(self.logits(CHUNKS, cache.fork()), self.right)
        except UserError:
            raise
        except Exception:
            # some recurrent layers have no way to read several tokens behind a state
            at_once = float("inf")
        if at_once <= self.allowed:
            return CHUNKS, at_once
        singly = difference(self.logits(SINGLE_TOKENS, cache.fork()), self.right)
        if at_once <= 4 * self.allowed and at_once <= 2 * singly:
            return CHUNKS, at_once  # hardly worse than token by token: rounding
        return (SINGLE_TOKENS if singly <= 4 * self.allowed else None), singly
