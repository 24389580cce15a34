"""The kernels that see a whole prompt: scores, statistics, packing, pages; and the plain copy."""

from __future__ import annotations

import pytest
import torch
from gpu import DEVICE, TINY, TYPES, relative_error, short_name
from test_decode_kernels import make_prefix
from torch import Tensor

from catekv import kernels
from catekv.kernels.packing import pack
from catekv.kernels.page_bounds import REDUCTIONS

#: Scores are computed in float32 from the stored numbers; the order of the sums is free.
SCORES_APART = 1e-4
#: Share of hits that may fall on the other side of a limit, by rounding.
HITS_MOVED = 2e-3
_HALF, _OTHER, _FULL = torch.bfloat16, torch.float16, torch.float32
_SUM, _MAX = "sum_of_chunk_max", "max_of_chunk_sum"
#: (type, head dimension, group, chunk, rule): every head dimension, rule and type once.
SCORES = [
    (_HALF, 128, 4, 8, _SUM), (_HALF, 128, 4, 8, _MAX), (_HALF, 64, 2, 1, _SUM),
    (_HALF, 96, 1, 8, _SUM), (_HALF, 256, 8, 16, _MAX), (_OTHER, 128, 7, 8, _SUM),
    (_FULL, 128, 4, 8, _SUM), (_FULL, 64, 16, 16, _MAX),
]  # fmt: skip
if TINY:
    SCORES = [(_OTHER, 64, 2, 1, _SUM), (_OTHER, 64, 2, 8, _MAX), (_FULL, 64, 1, 8, _SUM)]


def prompt(dtype: torch.dtype, head_dim: int, group: int) -> tuple[Tensor, Tensor, int]:
    """Queries, keys and their number of tokens."""
    tokens, window = (200, 16) if TINY else (9000, 64)
    queries = torch.randn(2, 3 * group, window, head_dim, device=DEVICE).to(dtype)
    keys = torch.randn(2, 3, tokens, head_dim, device=DEVICE).to(dtype)
    return queries, keys, tokens


@pytest.mark.parametrize("part", ["middle", "some heads, into the window"])
@pytest.mark.parametrize(("dtype", "head_dim", "group", "chunk", "rule"), SCORES, ids=short_name)
def test_window_scores(
    dtype: torch.dtype, head_dim: int, group: int, chunk: int, rule: str, part: str
) -> None:
    queries, keys, tokens = prompt(dtype, head_dim, group)
    start, stop, scored, heads = 64, tokens - 40, None, None
    if part != "middle":
        start, stop, scored = 0, tokens, tokens - 9
        heads = torch.tensor([0, 2], device=DEVICE)

    def run(backend: str, queries: Tensor, keys: Tensor) -> Tensor:
        return kernels.window_scores(
            queries, keys, head_dim**-0.5, start, stop, chunk, rule, scored=scored, heads=heads,
            backend=backend,
        )  # fmt: skip

    wanted = run("torch", queries.float(), keys.float())
    assert relative_error(run("triton", queries, keys), wanted) <= SCORES_APART


@pytest.mark.parametrize("dtype", TYPES, ids=short_name)
def test_window_statistics(dtype: torch.dtype) -> None:
    """Order statistics of the window's probabilities and the hits above limits made from them."""
    queries, keys, tokens = prompt(dtype, 64 if TINY else 128, 2)
    start, stop = 16, tokens - 24
    count = queries.shape[2] * (stop - start)
    positions = [int(0.9 * count), int(0.99 * count), count - 1]

    def run(backend: str, queries: Tensor, keys: Tensor) -> tuple[Tensor, list[Tensor]]:
        return kernels.window_statistics(
            queries, keys, queries.shape[-1] ** -0.5, start, stop, positions,
            lambda statistics: statistics[:, :2].contiguous(), (1, 8), backend=backend,
        )  # fmt: skip

    wanted, wanted_hits = run("torch", queries.float(), keys.float())
    found, hits = run("triton", queries, keys)
    assert relative_error(found, wanted) <= SCORES_APART
    for ours, theirs in zip(hits, wanted_hits, strict=True):
        moved = float((ours.long() - theirs.long()).abs().sum()) / max(1.0, float(theirs.sum()))
        assert moved <= HITS_MOVED


@pytest.mark.parametrize("head_dim", [64, 96] if TINY else [64, 96, 128, 256])
@pytest.mark.parametrize("dtype", TYPES, ids=short_name)
def test_pack(dtype: torch.dtype, head_dim: int) -> None:
    """Every row holds its kept entries in prompt order, whatever the memory order of the prompt."""
    tokens = 150 if TINY else 20000
    keep = torch.rand(2, 3, tokens, device=DEVICE) < 0.4
    keep[0, 1], keep[1, 2] = False, True
    # as a model stores a prompt, and as it hands it over
    keys = torch.randn(2, 3, tokens, head_dim, device=DEVICE).to(dtype)
    values = torch.randn(2, tokens, 3, head_dim, device=DEVICE).to(dtype).transpose(1, 2)
    prefix = pack(keys, values, keep)
    packed = kernels.pack(keys, values, keep, prefix.offsets, prefix.slots, backend="triton")
    for b in range(2):
        for head in range(3):
            chosen = keep[b, head]
            start = int(prefix.offsets[b, head])
            own = [tensor[start : start + int(chosen.sum())] for tensor in packed]
            for found in (prefix.row(b, head)[:2], own):
                assert torch.equal(found[0], keys[b, head][chosen])
                assert torch.equal(found[1], values[b, head][chosen])


@pytest.mark.parametrize(("head_dim", "group", "size"), [(64, 2, 16), (128, 4, 32)])
@pytest.mark.parametrize("dtype", TYPES, ids=short_name)
def test_pages(dtype: torch.dtype, head_dim: int, group: int, size: int) -> None:
    """Bounds of pages are exact; the bound of a query is a sum in float32."""
    prefix = make_prefix([0, 5, 33, 70 if TINY else 9000, 16, 48], 3, head_dim, dtype)
    wanted = kernels.page_bounds(prefix, size, backend="torch")
    found = kernels.page_bounds(prefix, size, backend="triton")
    assert torch.equal(found.low, wanted.low)
    assert torch.equal(found.high, wanted.high)
    queries = torch.randn(2, 3 * group, 1, head_dim, device=DEVICE).to(dtype)
    for reduction in REDUCTIONS:
        theirs = kernels.page_scores(queries.float(), wanted, reduction, backend="torch")
        ours = kernels.page_scores(queries, wanted, reduction, backend="triton")
        there = theirs.isfinite()
        assert torch.equal(there, ours.isfinite())
        assert relative_error(ours[there], theirs[there]) <= SCORES_APART


@pytest.mark.parametrize("dtype", TYPES, ids=short_name)
@pytest.mark.parametrize("numbers", [4096, (1 << 16) + 64] if TINY else [4096, 1 << 24, 12_345_664])
def test_copy(numbers: int, dtype: torch.dtype) -> None:
    """The yardstick of all bandwidths copies everything."""
    source = torch.randn(numbers, device=DEVICE).to(dtype)
    target = torch.zeros_like(source)
    kernels.copy(target, source, backend="triton")
    assert torch.equal(source, target)
