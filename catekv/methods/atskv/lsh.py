"""Locality-sensitive hashing with sign codes: ATSKV's way back from the passive tier.

A vector's bucket is the sign pattern of its projections on random directions. With all 2^bits
patterns as centroids this is the same as the nearest centroid in the L1 distance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Vectors projected at once, so that their float32 copies stay small.
BLOCK = 16384
#: Candidates times head_dim that a look-up gathers at once.
MAX_GATHERED = 1 << 24


def random_projection(bits: int, dim: int, seed: int, layer: int) -> Tensor:
    """Gaussian directions [bits, dim] of one layer; the same for the same seed everywhere."""
    generator = torch.Generator().manual_seed(seed * 10_007 + layer)
    return torch.randn(bits, dim, generator=generator)


def sign_codes(vectors: Tensor, projection: Tensor) -> Tensor:
    """Bucket of every vector: int64 [...] of [..., dim]; the first direction is the highest bit.

    A bit is 1 where the projection is positive.
    """
    bits = projection.shape[0]
    weights = 2 ** torch.arange(bits - 1, -1, -1, device=vectors.device)
    projection = projection.to(vectors.device)
    flat = vectors.reshape(-1, vectors.shape[-1])
    codes = torch.empty(flat.shape[0], dtype=torch.int64, device=vectors.device)
    for start in range(0, flat.shape[0], BLOCK):
        part = flat[start : start + BLOCK].float() @ projection.T
        codes[start : start + BLOCK] = ((part > 0) * weights).sum(dim=-1)
    return codes.view(vectors.shape[:-1])


def cosine(left: Tensor, right: Tensor) -> Tensor:
    """Cosine over the last dimension; 0 where a vector is zero."""
    product = (left * right).sum(dim=-1)
    norms = left.norm(dim=-1) * right.norm(dim=-1)
    return torch.where(norms > 0, product / norms.clamp(min=1e-30), product.new_zeros(()))


@dataclass(frozen=True, eq=False)
class LshIndex:
    """Keys of several rows, ordered by bucket.

    Attributes:
        keys: [rows, entries, dim].
        codes: int64 [rows, entries], ascending.
        order: int64 [rows, entries], the entry behind each code; lower entries first in a bucket.
    """

    keys: Tensor
    codes: Tensor
    order: Tensor

    @classmethod
    def build(cls, keys: Tensor, codes: Tensor) -> LshIndex:
        """The index of keys [rows, entries, dim] with their codes [rows, entries]."""
        ordered = codes.sort(dim=-1, stable=True)
        return cls(keys, ordered.values, ordered.indices)

    def entry_codes(self) -> Tensor:
        """The codes in the order of the keys: int64 [rows, entries]."""
        return torch.empty_like(self.codes).scatter_(-1, self.order, self.codes)

    def retrieve(self, queries: Tensor, codes: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        """The entries most similar to any of a row's queries, among those in that query's bucket.

        Args:
            queries: [rows, queries, dim]; codes: int64 [rows, queries], their buckets.
            top_k: how many entries per row at most.

        Returns:
            Entries int64 [rows, top_k], best first, -1 where a row has fewer, and their cosines
            float32 [rows, top_k] (0 there). Ties go to the lower entry.
        """
        rows, entries, dim = self.keys.shape
        low = torch.searchsorted(self.codes, codes)
        count = torch.searchsorted(self.codes, codes, right=True) - low
        width = int(count.max()) if count.numel() else 0
        found = torch.full((rows, top_k), -1, dtype=torch.int64)
        cosines = torch.zeros(rows, top_k)
        if width == 0:
            return found, cosines
        row = torch.arange(rows)[:, None, None]
        names, similarities = [], []
        step = max(1, MAX_GATHERED // (rows * width * dim))
        for start in range(0, queries.shape[1], step):
            part = slice(start, start + step)
            inside = torch.arange(width) < count[:, part, None]
            place = low[:, part, None] + torch.arange(width)
            entry = self.order[row, place.clamp(max=entries - 1)]
            similar = cosine(queries[:, part, None].float(), self.keys[row, entry].float())
            names.append((row * entries + entry)[inside])
            similarities.append(similar[inside])
        # several queries of a row may have met the same entry: its best cosine counts
        name, member = torch.cat(names).unique(return_inverse=True)
        best = torch.full(name.shape, -torch.inf)
        best.scatter_reduce_(0, member, torch.cat(similarities), "amax")
        order = best.sort(descending=True, stable=True).indices
        order = order[(name[order] // entries).sort(stable=True).indices]
        name, best = name[order], best[order]
        owner = name // entries
        rank = torch.arange(len(name)) - torch.searchsorted(owner, owner)
        taken = rank < top_k
        found[owner[taken], rank[taken]] = name[taken] % entries
        cosines[owner[taken], rank[taken]] = best[taken]
        return found, cosines
