"""What ShadowKV keeps of keys: a low-rank form of them before rotation, landmarks, outliers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from catekv.models.rotation import Rotation

#: Tokens that are turned back and multiplied at a time.
BLOCK_TOKENS = 2048


def low_rank(keys: Sequence[Tensor], rotation: Rotation, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of the pre-rotary keys of all heads together by a matrix of a rank.

    The right singular vectors are the eigenvectors of the keys' Gram matrix (summed in float64),
    so that nothing as large as the prompt is decomposed.

    Args:
        keys: per KV head [tokens, head_dim], post-rotary, at positions 0, 1, ...
        rank: at most ``heads * head_dim``.

    Returns:
        factors [tokens, rank] and bases [heads, rank, head_dim] in the dtype of the keys:
        ``factors @ bases[head]`` are the head's keys.
    """
    tokens, dim = keys[0].shape
    width = len(keys) * dim
    device, dtype = keys[0].device, keys[0].dtype

    def block(start: int) -> Tensor:
        part = torch.stack([head[start : start + BLOCK_TOKENS] for head in keys])
        part = part.to(torch.promote_types(dtype, torch.float32))
        positions = torch.arange(start, start + part.shape[1], device=device)
        return rotation.unrotate(part, positions).transpose(0, 1).reshape(-1, width)

    starts = range(0, tokens, BLOCK_TOKENS)
    gram = torch.zeros(width, width, dtype=torch.float64, device=device)
    for start in starts:
        rows = block(start).double()
        gram.addmm_(rows.T, rows)
    basis = torch.linalg.eigh(gram).eigenvectors[:, -rank:].flip(-1)
    factors = torch.empty(tokens, rank, dtype=dtype, device=device)
    for start in starts:
        rows = block(start)
        factors[start : start + BLOCK_TOKENS] = rows @ basis.to(rows.dtype)
    return factors, basis.T.reshape(rank, len(keys), dim).transpose(0, 1).to(dtype).contiguous()


def chunk_landmarks(keys: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Mean key of every chunk, and the smallest cosine between it and a key of the chunk.

    Args:
        keys: [chunks * chunk, head_dim], post-rotary.

    Returns:
        [chunks, head_dim] in the dtype of the keys, float32 [chunks].
    """
    chunked = keys.unflatten(0, (-1, chunk)).float()
    means = chunked.mean(dim=1)
    products = (chunked @ means[..., None]).squeeze(-1)
    norms = chunked.norm(dim=-1) * means.norm(dim=-1, keepdim=True)
    # keys of zeros agree with nothing
    return means.to(keys.dtype), (products / norms.clamp(min=1e-8)).amin(dim=1)


def outlier_chunks(cosine: Tensor, count: int) -> Tensor:
    """The chunks whose keys agree least with their mean, int64 [count]; ties to the earlier one."""
    return cosine.sort(stable=True).indices[:count]
