"""Choosing the next token: greedily, or drawn with temperature, top-k and top-p.

The filters are transformers' own. The draw is not: its random numbers follow from a seed per
sequence, so that a batch draws what its sequences draw alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from catekv.errors import UserError

#: Spreads the seeds of a batch's sequences, so that neighbouring seeds share none of them.
_SEED_STEP = 0x9E3779B97F4A7C15
#: logits divided by less leave the range of float32
_COLDEST = 1e-6
_SEEDS = 1 << 63


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; with the filters of transformers' ``generate`` in its order.

    Args:
        temperature: divides the logits; above 0. Default 1.
        top_k: only the ``top_k`` likeliest tokens (and those equal to the last of them) may be
            drawn. None: all.
        top_p: of what ``top_k`` left, only the likeliest tokens whose probabilities reach ``top_p``
            together. None: all.
        seed: of the random numbers. Every sequence of a batch has its own stream of them, which
            depends on the seed and the sequence's place in the batch alone: neither on the other
            sequences nor on when they end. A tuple: one seed per sequence, so that the place does
            not count either. None: a seed from torch's default generator.

    Raises:
        UserError: a value outside of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= _COLDEST):
            raise UserError(
                f"temperature {self.temperature} must be above 0, at least {_COLDEST:g}; "
                "leave all sampling options out for greedy decoding"
            )
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k {self.top_k} must be at least 1; leave it out for all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p {self.top_p} must be above 0 and at most 1")
        for seed in self.seed if isinstance(self.seed, tuple) else (self.seed,):
            if seed is not None and not 0 <= seed < _SEEDS:
                raise UserError(f"seed {seed} must be at least 0 and below 2^63")

    def filter(self, logits: Tensor) -> Tensor:
        """Logits [batch, vocabulary] of the distribution to draw from, float32; minus infinity on
        tokens that are never drawn."""
        # the warpers look at the scores only, never at the tokens before them
        scores: Tensor = self._warpers(None, logits.float())  # type: ignore[arg-type]
        return scores

    @cached_property
    def _warpers(self) -> LogitsProcessorList:
        warpers = LogitsProcessorList([TemperatureLogitsWarper(float(self.temperature))])
        if self.top_k is not None:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.top_p is not None:
            warpers.append(TopPLogitsWarper(self.top_p))
        return warpers


class Greedy:
    """Takes the likeliest token."""

    def __call__(self, logits: Tensor, index: int) -> Tensor:
        """Tokens [batch, 1] from logits [batch, vocabulary]; ``index`` counts the tokens before."""
        return logits.argmax(dim=-1, keepdim=True)


class Sampler:
    """Draws tokens by inverting the cumulative distribution, without the host.

    Args:
        sampling: the options. most: tokens drawn per sequence at most. device: of the logits.
        sequences: number of each sequence, which says what numbers it draws with.
    """

    def __init__(
        self, sampling: Sampling, sequences: Sequence[int], most: int, device: torch.device
    ):
        self.sampling = sampling
        generator = torch.Generator()
        numbers = torch.empty(len(sequences), most, dtype=torch.float64)
        for row, seed in enumerate(_seeds(sampling.seed, sequences)):
            generator.manual_seed(seed)
            numbers[row] = torch.rand(most, generator=generator, dtype=torch.float64)
        self.numbers = numbers.to(device)

    def __call__(self, logits: Tensor, index: int) -> Tensor:
        """As :meth:`Greedy.__call__`."""
        scores = self.sampling.filter(logits)
        cumulative = scores.softmax(dim=-1, dtype=torch.float64).cumsum(dim=-1)
        total = cumulative[:, -1:]
        drawn = self.numbers[:, index : index + 1] * total
        # below the total also after rounding: else the search would run off the end
        drawn = drawn.minimum(torch.nextafter(total, torch.zeros_like(total)))
        return torch.searchsorted(cumulative, drawn, right=True)


def _seeds(seed: int | tuple[int, ...] | None, sequences: Sequence[int]) -> list[int]:
    """One seed per sequence."""
    if isinstance(seed, tuple):
        if len(seed) <= max(sequences, default=0):
            raise UserError(
                f"{len(seed)} seeds are too few for sequence {max(sequences)}; give one per "
                "sequence, or a single one for all"
            )
        return [seed[sequence] for sequence in sequences]
    if seed is None:
        seed = int(torch.randint(_SEEDS - 1, ()))
    return [(seed + sequence * _SEED_STEP) % _SEEDS for sequence in sequences]
