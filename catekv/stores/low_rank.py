"""What ShadowKV keeps of keys: a low-rank form of them before rotation, landmarks, outliers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from catekv.rotation import Rotation

#: Tokens that are turned back and multiplied at a time, in float64.
BLOCK_TOKENS = 8192


def low_rank(keys: Sequence[Tensor], rotation: Rotation, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of the pre-rotary keys of all heads together by a matrix of a rank.

    The right singular vectors are the eigenvectors of the keys' Gram matrix, so that nothing as
    large as the prompt is decomposed.

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
        part = torch.stack([head[start : start + BLOCK_TOKENS] for head in keys]).double()
        positions = torch.arange(start, start + part.shape[1], device=device)
        return rotation.unrotate(part, positions).transpose(0, 1).reshape(-1, width)

    starts = range(0, tokens, BLOCK_TOKENS)
    gram = torch.zeros(width, width, dtype=torch.float64, device=device)
    for start in starts:
        rows = block(start)
        gram.addmm_(rows.T, rows)
    basis = torch.linalg.eigh(gram).eigenvectors[:, -rank:].flip(-1)
    factors = torch.empty(tokens, rank, dtype=dtype, device=device)
    for start in starts:
        factors[start : start + BLOCK_TOKENS] = block(start) @ basis
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
    cosine = F.cosine_similarity(chunked, means[:, None], dim=-1).amin(dim=1)
    return means.to(keys.dtype), cosine


def outlier_chunks(cosine: Tensor, count: int) -> Tensor:
    """The chunks whose keys agree least with their mean, int64 [count]; ties to the earlier one."""
    return cosine.sort(stable=True).indices[:count]
