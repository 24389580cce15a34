"""Fewer entries with the attention of many: keys that stay, a logit bias and refitted values such
that mass and output agree on sample queries (Attention Matching)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from catekv.methods.formulas.blocks import block_floats

#: How weights of all queries become the score of a key.
SCORES = ("rms", "max", "mean")
#: Queries whose logits are held at once, at least: 32 MiB of 128K entries.
_ROWS = 64
#: Bias below which a greedily chosen entry is replaced.
WEAK = -7.0
#: Columns of a block of products of columns with one another.
_COLUMNS = 128
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
            weights = logits.sub_(shift[:, None]).exp_()
            mass = weights.sum(dim=-1)
            weights /= mass[:, None]
            parts.append((shift, mass, weights @ values))
            if score == "max":
                scores = scores.maximum(weights.amax(dim=0))
            else:
                scores += (weights.square_() if score == "rms" else weights).sum(dim=0)
        if score != "max":
            scores /= len(queries)
        shift, mass, outputs = (torch.cat(part) for part in zip(*parts, strict=True))
        return cls(
            queries, positions, scores.sqrt() if score == "rms" else scores, shift, mass, outputs
        )

    def greedily(self, keys: Tensor, count: int, low: float, high: float) -> Tensor:
        """``count`` entries in order of choice, int64: each is the one that covers most of the mass
        which those before it leave (orthogonal matching pursuit).

        Later keys are taken several at a time. An entry whose bias comes out below :data:`WEAK` is
        replaced by others, as long as there are any. Holds queries x entries numbers.

        Args:
            keys: [entries, head_dim]. low, high: range of the bias.
        """
        everything = torch.arange(len(keys), device=keys.device)
        basis = torch.cat(list(_logits(self.queries, self.positions, keys.float(), everything)))
        basis.sub_(self.shift[:, None]).exp_()
        free = torch.ones(len(keys), dtype=torch.bool, device=keys.device)
        chosen = everything[:0]
        squares, seen = _normal_equations(basis[:, :0], self.mass)
        factors = seen
        while True:
            while len(chosen) < count:
                left = (self.mass.double() - (basis[:, chosen].double() @ factors)[:, 0]).float()
                worth = (left @ basis).masked_fill(~free, -torch.inf)
                more = min(_taken_together(len(chosen)), count - len(chosen))
                new = worth.sort(descending=True, stable=True).indices[:more]
                chosen, free[new] = torch.cat([chosen, new]), False
                squares, seen = _normal_equations(basis[:, chosen], self.mass, squares, seen)
                factors = _solved(squares, seen).clamp(torch.e**low, torch.e**high)
            weak = (factors[:, 0].log() < WEAK).nonzero()[:, 0]
            weak = weak[factors[weak, 0].argsort(stable=True)][: int(free.sum())]
            if not len(weak):
                return chosen
            stays = torch.ones_like(chosen, dtype=torch.bool)
            stays[weak] = False
            chosen, squares, seen = chosen[stays], squares[stays][:, stays], seen[stays]
            factors = _solved(squares, seen).clamp(torch.e**low, torch.e**high)

    def fit(
        self, keys: Tensor, entries: Tensor, low: float, high: float, steps: int
    ) -> tuple[Tensor, Tensor]:
        """Bias [kept] and values [kept, value_dim] of the kept ``entries`` int64 [kept].

        Args:
            keys: [entries, head_dim], of all.
            low, high: range of the bias.
            steps: of projected gradient descent after the clamped least squares.
        """
        logits = _logits(self.queries, self.positions, keys[entries].float(), entries)
        basis = torch.cat(list(logits)).sub_(self.shift[:, None]).exp_().double()
        squares, seen = _normal_equations(basis, self.mass)
        factors = _solved(squares, seen).clamp(torch.e**low, torch.e**high)
        if steps:
            size = 1 / _largest_eigenvalue(squares).clamp(min=1e-30)
            for _ in range(steps):
                factors -= size * (squares @ factors - seen)
                factors.clamp_(torch.e**low, torch.e**high)
        weights = basis.mul_(factors.T)
        # a query may see none of what is kept
        weights /= weights.sum(dim=-1, keepdim=True).clamp(min=1e-30)
        # on a CPU weights.T @ outputs takes twice as long
        values = _solved(_gram(weights), (self.outputs.double().T @ weights).T)
        return factors[:, 0].log().float(), values.float()


def _logits(queries: Tensor, positions: Tensor, keys: Tensor, entries: Tensor) -> Iterator[Tensor]:
    """Logits of blocks of queries over keys, hidden where an entry comes after a query."""
    together = max(_ROWS, 2 * block_floats(keys.device) // max(1, len(keys)))
    for rows in torch.arange(len(queries), device=keys.device).split(together):
        logits = queries[rows] @ keys.T
        yield logits.masked_fill_(entries > positions[rows, None], -torch.inf)


def _taken_together(chosen: int) -> int:
    """Keys that are taken before the next fit: as released 1, from 300 chosen ones on 2 by 2 and
    from 1500 on 4 by 4, with a fit after every second time."""
    return 1 if chosen < 300 else 4 if chosen < 1500 else 8


def _normal_equations(
    basis: Tensor, mass: Tensor, squares: Tensor | None = None, seen: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Products of the columns of a basis [queries, columns] with one another and with the mass
    [queries], in float64: [columns, columns] and [columns, 1]; those of the first columns may be
    known."""
    known = 0 if squares is None else len(squares)
    new = basis[:, known:].double()
    if squares is None or seen is None or not known:
        return _gram(new), new.T @ mass.double()[:, None]
    across, own = basis[:, :known].double().T @ new, _gram(new)
    squares = torch.cat([torch.cat([squares, across], 1), torch.cat([across.T, own], 1)])
    return squares, torch.cat([seen, new.T @ mass.double()[:, None]])


def _gram(columns: Tensor) -> Tensor:
    """Products of columns [rows, columns] with one another; each pair of blocks once."""
    result = columns.new_empty(columns.shape[1], columns.shape[1])
    for start in range(0, columns.shape[1], _COLUMNS):
        block = slice(start, start + _COLUMNS)
        result[block, start:] = columns[:, block].T @ columns[:, start:]
        result[block.stop :, block] = result[block, block.stop :].T
    return result


def _largest_eigenvalue(squares: Tensor) -> Tensor:
    """Of a symmetric matrix without negative numbers, whose first vector therefore has none: power
    iteration from ones, to ten digits."""
    vector = squares.new_ones(len(squares)) / max(1, len(squares)) ** 0.5
    value = squares.new_zeros(())
    for _ in range(1000):
        image = squares @ vector
        before, value = value, torch.linalg.vector_norm(image)
        if bool((value - before).abs() <= 1e-10 * value):
            break
        vector = image / value
    return value


def _solved(squares: Tensor, right: Tensor) -> Tensor:
    """Least squares by its normal equations."""
    if not len(squares):
        return right
    squares = squares.clone()
    squares.diagonal().add_(_RIDGE * squares.diagonal().mean().clamp(min=1e-30))
    factor, failed = torch.linalg.cholesky_ex(squares)
    if int(failed):
        return torch.linalg.pinv(squares, hermitian=True) @ right
    return torch.cholesky_solve(right, factor)
