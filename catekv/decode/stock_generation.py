"""Answering through transformers' own ``generate``: beams, penalties, a generation configuration.

Everything that is asked of it counts in the order that transformers has: an argument, then the
``generation_config`` given along, then the model's own. What a compressed context cannot do, and
what would be lost because the answer is text, is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from catekv.cache.cache import RaggedCache
from catekv.errors import UserError
from catekv.models.compat import generate_cache_argument

#: New tokens where neither an argument nor a configuration says how many.
DEFAULT_NEW_TOKENS = 64

_ROLLED_BACK = "needs a cache that can be rolled back, a compressed one cannot; generate without it"
_CONTEXT_IS_IT = "has no place beside a context, which is the cache; leave it out"
_GIVEN = "comes from the question and its context; leave it out"
_TEXT_ONLY = (
    "has no place in an answer that is text; call model.generate of transformers with "
    "past_key_values=context.cache.fork() for it"
)
_REFUSED = {
    "assistant_model": _ROLLED_BACK,
    "prompt_lookup_num_tokens": _ROLLED_BACK,
    "use_mtp": _ROLLED_BACK,
    "cache_implementation": _CONTEXT_IS_IT,
    "cache_config": _CONTEXT_IS_IT,
    "past_key_values": _CONTEXT_IS_IT,
    "cache": _CONTEXT_IS_IT,
    "inputs": _GIVEN,
    "input_ids": _GIVEN,
    "inputs_embeds": _GIVEN,
    "attention_mask": _GIVEN,
    "position_ids": _GIVEN,
    "output_scores": _TEXT_ONLY,
    "output_logits": _TEXT_ONLY,
    "output_attentions": _TEXT_ONLY,
    "output_hidden_states": _TEXT_ONLY,
    "token_healing": "would take back tokens of the prompt, which is compressed; leave it out",
}


class StockOptions:
    """The options of one answer through transformers.

    Args:
        model: the transformers model.
        options: as ``model.generate`` takes them, ``generation_config`` among them.
        max_new_tokens: None: what the options or their configuration say (``max_new_tokens``, or
            ``max_length`` with the prompt in it), else :data:`DEFAULT_NEW_TOKENS`.

    With ``temperature``, ``top_k`` or ``top_p`` as an argument tokens are drawn.

    Raises:
        UserError: an option that is refused, or ones that contradict each other.
    """

    def __init__(self, model: Any, options: dict[str, Any], max_new_tokens: int | None = None):
        self.model = model
        self.options = {name: value for name, value in options.items() if value is not None}
        config = self.options.pop("generation_config", None)
        if config is not None and not isinstance(config, GenerationConfig):
            raise UserError(
                f"generation_config is a {type(config).__name__}; pass a GenerationConfig of "
                "transformers"
            )
        self.config = config
        self._refuse()
        self._draw()
        self.max_new_tokens = max_new_tokens
        if max_new_tokens is None:
            self.max_new_tokens = self.asked("max_new_tokens")
        self.max_length = self.asked("max_length") if self.max_new_tokens is None else None

    def asked(self, name: str) -> Any:
        """What the caller asked for; None: nothing."""
        value = self.options.get(name)
        return getattr(self.config, name, None) if value is None else value

    def value(self, name: str) -> Any:
        """What counts in the end; None: the default of transformers."""
        asked = self.asked(name)
        own = getattr(self.model, "generation_config", None)
        return getattr(own, name, None) if asked is None else asked

    def new_tokens(self, prompt_tokens: int) -> int:
        """New tokens at most after a prompt of so many; ``UserError`` if there is no room."""
        count, length = self.max_new_tokens, self.max_length
        if count is None:
            count = DEFAULT_NEW_TOKENS if length is None else length - prompt_tokens
        if count < 1 and length is not None:
            raise UserError(
                f"max_length {length} leaves no room after {prompt_tokens} tokens; use "
                "max_new_tokens"
            )
        if count < 1:
            raise UserError(f"max_new_tokens {count} must be at least 1")
        return int(count)

    def copies(self) -> int:
        """Rows that transformers makes of each prompt."""
        return max(self.value("num_beams") or 1, self.value("num_return_sequences") or 1)

    def until_end(self, row: Sequence[int]) -> list[int]:
        """A row of new tokens without the padding behind the token that ended it."""
        ends = self.value("eos_token_id")
        if ends is None:
            return list(row)
        stops = {ends} if isinstance(ends, int) else set(torch.as_tensor(ends).flatten().tolist())
        for index, token in enumerate(row):
            if token in stops:
                return list(row[: index + 1])
        return list(row)

    def arguments(self, new_tokens: int, tokenizer: Any) -> dict[str, Any]:
        """Keyword arguments of ``model.generate``."""
        options = {**self.options, "max_new_tokens": new_tokens}
        options.pop("max_length", None)
        if self.config is not None:
            # in one object: transformers warns where a configuration and arguments come together
            config = copy.deepcopy(self.config)
            config.max_length = None
            options = {"generation_config": config, **config.update(**options)}
        if self.value("stop_strings") is not None:
            options.setdefault("tokenizer", tokenizer)
        return options

    def _refuse(self) -> None:
        for name, reason in _REFUSED.items():
            asked = self.asked(name)
            if asked is not None and asked is not False:
                raise UserError(f"{name} {reason}")
        if self.asked("use_cache") is False:
            raise UserError(f"use_cache=False {_CONTEXT_IS_IT}")

    def _draw(self) -> None:
        drawing = [name for name in ("temperature", "top_k", "top_p") if name in self.options]
        if not drawing:
            return
        if self.options.setdefault("do_sample", True) is False:
            raise UserError(
                f"{', '.join(drawing)} draw tokens and do_sample=False does not; leave one out"
            )


def refuse_both(options: dict[str, Any], **own: Any) -> None:
    """``UserError`` if options of our loop stand beside those of transformers."""
    instead = {"seed": "torch.manual_seed", "stop": "stop_strings=", "stream": "streamer="}
    for name, value in own.items():
        if value is not None:
            raise UserError(
                f"{name} belongs to catekv's own loop, {', '.join(sorted(options))} to "
                f"transformers' generate(); leave one out or use {instead[name]}"
            )


def generate(
    options: StockOptions, ids: Tensor, mask: Tensor, cache: RaggedCache, tokenizer: Any = None
) -> list[list[int]]:
    """The new tokens of every returned sequence.

    Args:
        ids: int64 [batch, columns] of context and question. mask: the same shape.
        cache: a fork of the context's; consumed.
        tokenizer: for stop strings.

    Raises:
        UserError: transformers refuses the options.
    """
    # transformers repeats the ids for beams and returned sequences, but not a given cache
    copies = options.copies()
    if copies > 1:
        cache.batch_repeat_interleave(copies)
    new_tokens = options.new_tokens(ids.shape[1])
    try:
        arguments = options.arguments(new_tokens, tokenizer)
        output = options.model.generate(
            ids, attention_mask=mask, **generate_cache_argument(cache), **arguments
        )
    except UserError:
        raise
    except ValueError as error:
        raise UserError(
            f"transformers refuses these options: {' '.join(str(error).split())}"
        ) from error
    rows = output if isinstance(output, Tensor) else output.sequences
    return [options.until_end(row) for row in rows[:, ids.shape[1] :].tolist()]
