"""Fewer entries with the attention of many: keys that stay, a logit bias and refitted values such
that mass and output agree on sample queries (Attention Matching)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

#: How weights of all queries become the score of a key.
SCORES = ("rms", "max", "mean")
#: Numbers of float32 logits that are held at once: 32 MiB.
_FLOATS = 1 << 23
#: Share of the mean diagonal that is added before a system of equations is solved: where samples do
#: not determine the answer, the smallest one is taken.
_RIDGE = 1e-10


@dataclass(frozen=True, eq=False)
class Matched:
    """What the sample queries saw of all entries of one head, in float32.

    Attributes:
        queries: [queries, head_dim], scaled. positions: int64 [queries], the last entry that each
            may see.
        scores: [entries]. shift: [queries], the largest logit of each. mass: [queries], the sum of
            exponentials behind the shift. outputs: [queries, value_dim].
    """

    queries: Tensor
    positions: Tensor
    scores: Tensor
    shift: Tensor
    mass: Tensor
    outputs: Tensor

    @classmethod
    def of(
        cls, queries: Tensor, positions: Tensor, keys: Tensor, values: Tensor, score: str
    ) -> Matched:
        """Attention of all queries over all entries; every query must see one of them."""
        keys, values, scores = keys.float(), values.float(), keys.new_zeros(len(keys)).float()
        parts = []
        for logits in _logits(
            queries, positions, keys, torch.arange(len(keys), device=keys.device)
        ):
            shift = logits.amax(dim=-1)
            weights = (logits - shift[:, None]).exp_()
            mass = weights.sum(dim=-1)
            weights /= mass[:, None]
            if score == "max":
                scores = scores.maximum(weights.amax(dim=0))
            else:
                scores += (weights.square() if score == "rms" else weights).sum(dim=0)
            parts.append((shift, mass, weights @ values))
        if score != "max":
            scores /= len(queries)
        shift, mass, outputs = (torch.cat(part) for part in zip(*parts, strict=True))
        return cls(
            queries, positions, scores.sqrt() if score == "rms" else scores, shift, mass, outputs
        )

    def fit(
        self, keys: Tensor, entries: Tensor, low: float, high: float, steps: int
    ) -> tuple[Tensor, Tensor]:
        """Bias [kept] and values [kept, value_dim] of the kept ``entries`` int64 [kept].

        Args:
            keys: [entries, head_dim], of all.
            low, high: range of the bias.
            steps: of projected gradient descent after the clamped least squares.
        """
        kept = torch.cat(
            list(_logits(self.queries, self.positions, keys[entries].float(), entries))
        )
        basis = (kept - self.shift[:, None]).exp().double()
        squares, seen = basis.T @ basis, basis.T @ self.mass.double()[:, None]
        factors = _solved(squares, seen).clamp(torch.e**low, torch.e**high)
        if steps:
            size = 1 / torch.linalg.eigvalsh(squares)[-1].clamp(min=1e-30)
            for _ in range(steps):
                factors -= size * (squares @ factors - seen)
                factors.clamp_(torch.e**low, torch.e**high)
        weights = basis * factors.T
        # a query may see none of what is kept
        weights /= weights.sum(dim=-1, keepdim=True).clamp(min=1e-30)
        values = _solved(weights.T @ weights, weights.T @ self.outputs.double())
        return factors[:, 0].log().float(), values.float()


def _logits(queries: Tensor, positions: Tensor, keys: Tensor, entries: Tensor) -> Iterator[Tensor]:
    """Logits of blocks of queries over keys, hidden where an entry comes after a query."""
    for rows in torch.arange(len(queries), device=keys.device).split(
        max(1, _FLOATS // max(1, len(keys)))
    ):
        logits = queries[rows] @ keys.T
        yield logits.masked_fill_(entries > positions[rows, None], -torch.inf)


def _solved(squares: Tensor, right: Tensor) -> Tensor:
    """Least squares by its normal equations."""
    squares = squares.clone()
    squares.diagonal().add_(_RIDGE * squares.diagonal().mean().clamp(min=1e-30))
    factor, failed = torch.linalg.cholesky_ex(squares)
    if int(failed):
        return torch.linalg.pinv(squares, hermitian=True) @ right
    return torch.cholesky_solve(right, factor)
