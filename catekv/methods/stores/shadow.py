"""What ShadowKV keeps of a row: low-rank keys, landmarks, and values on the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from catekv.kernels.page_bounds import best_first
from catekv.kernels.ragged import RaggedPrefix
from catekv.methods.stores.block_reader import product
from catekv.methods.stores.host import to_host
from catekv.methods.stores.low_rank import chunk_landmarks, low_rank, outlier_chunks
from catekv.models.rotation import Rotation


@dataclass(frozen=True)
class ShadowSettings:
    """``rank`` of the keys of all heads together; tokens per ``chunk``; how many chunks are kept
    exactly as ``outliers`` and as the most recent (``local``) ones, and how many a step fetches
    (``top``)."""

    rank: int
    chunk: int
    outliers: int
    local: int
    top: int

    @property
    def room(self) -> int:
        """Tokens that a step fetches of a row."""
        return self.top * self.chunk

    def shadowed_chunks(self, tokens: int) -> int:
        """Leading chunks of a row of ``tokens`` tokens that are kept in low rank; 0 if so few that
        a step would fetch all of them."""
        chunks = max(0, tokens // self.chunk - self.local)
        return chunks if chunks > self.outliers + self.top else 0


@dataclass(frozen=True, eq=False)
class Shadow:
    """The leading chunks of some rows (``S`` of them), immutable.

    Attributes:
        factors: [tokens of all sequences, rank]; bases: [S, rank, head_dim].
        values: [chunks of all rows, chunk * value_dim], in host memory.
        landmarks: [S, chunks, head_dim]; hidden: bool [S, chunks], chunks that are not to be
            fetched (outliers, and those that a row does not have).
        first_token, first_chunk: int64 [S, 1], where a row's part of factors and values starts.
        rows: the rows' numbers; chunks: chunks of each.
    """

    settings: ShadowSettings
    rotation: Rotation
    factors: Tensor
    bases: Tensor
    values: Tensor
    landmarks: Tensor
    hidden: Tensor
    first_token: Tensor
    first_chunk: Tensor
    rows: tuple[int, ...]
    chunks: tuple[int, ...]

    def tensors(self) -> list[Tensor]:
        """Every tensor it holds."""
        own = [getattr(self, item.name) for item in dataclasses.fields(self)]
        angles = self.rotation.inverse_frequencies
        return [item for item in own if isinstance(item, Tensor)] + [angles]

    def best_chunks(self, queries: Tensor, scaling: float) -> Tensor:
        """Chunks to fetch, int64 [S, top], for queries [S, group, head_dim]: softmax over the
        landmarks per head, maximum over the group, ties to the earlier chunk."""
        logits = product(queries, self.landmarks.transpose(1, 2)) * scaling
        probability = logits.masked_fill(self.hidden[:, None], -torch.inf).softmax(dim=-1)
        scores = probability.amax(dim=1).masked_fill(self.hidden, -1.0)
        return best_first(scores, self.settings.top)

    def keys(self, chunks: Tensor, rows: slice = slice(None)) -> Tensor:
        """Keys of some chunks [rows, n], rebuilt and rotated: [rows, n * chunk, head_dim]."""
        size = self.settings.chunk
        inner = torch.arange(size, device=chunks.device)
        positions = (chunks[..., None] * size + inner).flatten(1)
        where = positions + self.first_token[rows]
        factors = self.factors.index_select(0, where.flatten()).view(*where.shape, -1)
        return self.rotation.rotate(torch.bmm(factors, self.bases[rows]), positions)

    def select(self, places: Sequence[int], rows: Sequence[int]) -> Shadow:
        """The shadow of other rows: ``places`` among the present ones, ``rows`` their new numbers;
        factors and values are shared."""
        where = torch.tensor(places, dtype=torch.int64, device=self.bases.device)
        names = ("bases", "landmarks", "hidden", "first_token", "first_chunk")
        taken = {name: getattr(self, name).index_select(0, where) for name in names}
        chunks = tuple(self.chunks[place] for place in places)
        return dataclasses.replace(self, rows=tuple(rows), chunks=chunks, **taken)


def _factorise(
    prefix: RaggedPrefix,
    rotation: Rotation,
    rows: Sequence[int],
    chunks: Sequence[int],
    settings: ShadowSettings,
) -> tuple[Tensor, Tensor, list[list[int]]]:
    """Low-rank keys of the shadowed rows, all heads of a sequence together.

    Returns:
        The factors [tokens, rank] and bases of all sequences one after the other, and for every row
        the number of its sequence's first factor.
    """
    heads, dim = prefix.kv_heads, prefix.keys.shape[-1]
    factors: list[Tensor] = []
    bases: list[Tensor] = []
    first_token: list[list[int]] = []
    for b in sorted({row // heads for row in rows}):
        group = [row for row in rows if row // heads == b]
        stop = chunks[group[0]] * settings.chunk
        row_keys = [prefix.row(b, row % heads)[0][:stop] for row in group]
        first_token += [[sum(len(factor) for factor in factors)]] * len(group)
        factor, basis = low_rank(row_keys, rotation, min(settings.rank, dim * len(group)))
        factors.append(factor)
        bases.append(basis)
    return torch.cat(factors), torch.cat(bases), first_token


def make_shadow(
    prefix: RaggedPrefix,
    rotation: Rotation,
    shadowed: Sequence[bool],
    settings: ShadowSettings,
) -> tuple[Shadow, dict[int, Tensor]] | None:
    """Take the shadow of some rows of a prefix.

    Args:
        prefix: shadowed rows hold all tokens of their sequence.
        shadowed: for every row, in (batch, head) order, whether to try; the same heads in every
            sequence.

    Returns:
        The shadow, and for every row in it the tokens to be kept exactly, int64. None if no row is
        long enough.
    """
    heads, device, dim = prefix.kv_heads, prefix.keys.device, prefix.keys.shape[-1]
    chunks = [
        settings.shadowed_chunks(length) if wanted else 0
        for wanted, (_, length) in zip(shadowed, prefix.host_rows, strict=True)
    ]
    rows = [row for row, count in enumerate(chunks) if count]
    if not rows:
        return None
    landmarks = prefix.keys.new_zeros(len(rows), max(chunks), dim)
    hidden = torch.ones(len(rows), max(chunks), dtype=torch.bool, device=device)
    inner = torch.arange(settings.chunk, device=device)
    exact: dict[int, Tensor] = {}
    values: list[Tensor] = []
    for number, row in enumerate(rows):
        keys, row_values, _ = prefix.row(*divmod(row, heads))
        count = chunks[row]
        stop = count * settings.chunk
        landmarks[number, :count], cosine = chunk_landmarks(keys[:stop], settings.chunk)
        outliers = outlier_chunks(cosine, settings.outliers).sort().values
        hidden[number, :count] = False
        hidden[number, outliers] = True
        kept = (outliers[:, None] * settings.chunk + inner).flatten()
        exact[row] = torch.cat([kept, torch.arange(stop, len(keys), device=device)])
        values.append(row_values[:stop].reshape(count, -1))
    factors, bases, first_token = _factorise(prefix, rotation, rows, chunks, settings)
    first_chunk = [[sum(len(part) for part in values[:number])] for number in range(len(rows))]
    shadow = Shadow(
        settings,
        rotation,
        factors,
        bases,
        to_host(values),
        landmarks,
        hidden,
        torch.tensor(first_token, device=device),
        torch.tensor(first_chunk, device=device),
        tuple(rows),
        tuple(chunks[row] for row in rows),
    )
    return shadow, exact
