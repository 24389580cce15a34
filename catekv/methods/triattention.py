"""TriAttention (2026): what queries to come would see in a key, from mean queries known before."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.methods.base import Needs, Observed
from catekv.methods.bounded import Bounded
from catekv.methods.example import Example, MemoryFormula
from catekv.methods.formulas.query_statistics import read_statistics
from catekv.methods.options import method_option
from catekv.methods.registry import register
from catekv.models.rotation import Rotation
from catekv.models.shape import ModelShape

#: A deviation below this is taken for it, so that equal scores stay finite.
_LEAST_DEVIATION = 1e-6
#: Numbers of float32 keys that are held at once: 16 MiB, of which their lengths take a copy.
_FLOATS = 1 << 22


def example_statistics(shape: ModelShape) -> dict[str, Any]:
    """Numbers for a model that say nothing about its queries."""
    extents = (3, shape.layers, shape.query_heads, shape.head_dim // 2)
    numbers = torch.arange(math.prod(extents)).view(extents)
    numbers = torch.where(numbers % 3 == 1, -1.0, 1.0) * (numbers * 7 % 11 + 1) / 11
    names = ("q_mean_real", "q_mean_imag", "q_abs_mean")
    parts = dict(zip(names, numbers.tolist(), strict=True))
    return {"budget": 12, "every": 3, "protect_prompt": False, "statistics": parts}


def series_scores(
    statistics: Tensor, keys: Tensor, rotation: Rotation, now: int, max_offset: int
) -> Tensor:
    """Scores of each query head, float32 [kv_heads, group, entries].

    The mean query, turned to the positions 1, 2, 4 ... ``max_offset`` tokens after the newest and
    averaged there, times the key as it is stored; and the mean length of what queries scatter by,
    times the length of the key.

    Args:
        statistics: [3, kv_heads, group, numbers], see :class:`QueryStatistics`.
        keys: [kv_heads, entries, head_dim], rotated.
        now: tokens seen.
    """
    frequencies = rotation.inverse_frequencies.double()
    offsets = 2.0 ** torch.arange(max_offset.bit_length(), device=keys.device).double()
    angles = (now + offsets)[:, None] * frequencies
    turn = torch.polar(torch.ones_like(angles), angles).mean(dim=0)
    real, imaginary, length = statistics.double()
    mean = torch.complex(real, imaginary)
    later = mean * turn
    turned = torch.cat([later.real, later.imag], dim=-1).float()
    scattered = (length - mean.abs()).float()
    half = len(frequencies)
    parts = []
    for part in keys[..., : 2 * half].split(max(1, _FLOATS // (2 * half * len(keys))), dim=1):
        states = part.float()
        lengths = torch.complex(states[..., :half], states[..., half:]).abs()
        parts.append(turned @ states.transpose(1, 2) + scattered @ lengths.transpose(1, 2))
    # keys are stored with the factor of the rotation, which queries have too
    return rotation.scaling * torch.cat(parts, dim=-1)


@register
@dataclass(frozen=True)
class TriAttention(Bounded):
    """Keep what queries to come would look at, as far as mean queries tell.

    Before their rotation the queries of a head are much alike, so that the logit at a distance
    follows from their mean and the key: a sum of cosines. While decoding, every ``every`` tokens
    above the budget each head keeps its prompt and the best others. The scores of a query head are
    the mean over distances 1, 2, 4 ... to the newest token, standardised over the entries that may
    leave; the largest of the group counts. Rotations that change with the length are not followed.

    Args:
        statistics: file of the mean queries, made with ``catekv triattention`` or by the authors'
            script (for models that normalise their queries only the former counts that).
        max_offset: largest distance.
    """

    name: ClassVar[str] = "triattention"
    example = Example(example_statistics)
    memory_formula = MemoryFormula("budget", "kept*(e + 4)")
    paper: ClassVar[str] = "TriAttention: Efficient Long Reasoning, 2026"

    buffer: int | None = 0
    rule: str = "slack"
    protect_prompt: bool = True
    statistics: Any = method_option(
        None,
        convert=read_statistics,
        needs="query statistics; give statistics=FILE, which `catekv triattention` makes",
    )
    max_offset: int = method_option(1 << 16, least=1)

    @property
    def needs(self) -> Needs:
        return Needs(rotation=True)

    def validate(self, shape: ModelShape) -> None:
        super().validate(shape)
        found = self.statistics
        if (found.layers, found.heads) != (shape.layers, shape.query_heads):
            raise UserError(
                f"{self.name}: statistics of {found.layers} layers with {found.heads} query heads "
                f"for a model of {shape.layers} with {shape.query_heads}; make them for this model "
                "with `catekv triattention`"
            )

    def for_heads(self, heads: slice) -> TriAttention:
        return replace(super().for_heads(heads), statistics=self.statistics.after(heads.start))

    def entry_scores(self, observed: Observed) -> Tensor:
        rotation, keys, held = observed.required_rotation(self.name), observed.keys, observed.held
        heads = torch.arange(keys.shape[1], device=keys.device) if held is None else held.heads
        statistics = self.statistics.of_heads(observed.layer, heads, observed.group)
        if statistics.shape[-1] != len(rotation.inverse_frequencies):
            raise UserError(
                f"{self.name}: statistics of {statistics.shape[-1]} rotated pairs for heads of "
                f"{len(rotation.inverse_frequencies)}; make them for this model"
            )
        now = observed.tokens if held is None else held.seen
        certain = held.prompt if held is not None and self.protect_prompt else 0
        scores = torch.full(keys.shape[:3], math.inf, device=keys.device)
        for b, own in enumerate(keys):
            found = series_scores(statistics, own[:, certain:], rotation, now, self.max_offset)
            found -= found.mean(dim=-1, keepdim=True)
            deviation = found.std(dim=-1, correction=0, keepdim=True)
            found /= deviation.clamp(min=_LEAST_DEVIATION)
            scores[b, :, certain:] = found.amax(dim=1)
        return scores
