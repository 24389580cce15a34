"""Order statistics and hits of the observation window: the kernels against the definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from catekv import kernels
from catekv.calibration import CVConfig, observation
from catekv.kernels.window_scores import window_attention


def tensors(
    window: int, tokens: int, dtype: torch.dtype = torch.float16, heads: int = 2, group: int = 2
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    queries = torch.randn(1, window, heads * group, 64, generator=generator)
    keys = torch.randn(1, tokens, heads, 64, generator=generator)
    return queries.to(dtype).transpose(1, 2), keys.to(dtype).transpose(1, 2)


def between_neighbours(statistics: Tensor) -> Tensor:
    """Limits halfway between pairs of neighbours, where rounding moves no value across."""
    return statistics.unflatten(-1, (-1, 2)).double().mean(dim=-1).float()


@pytest.mark.parametrize(
    ("dtype", "window", "start", "stop"),
    [
        (torch.float32, 6, 8, 60),
        (torch.float16, 6, 8, 60),
        # two tiles of queries, and keys that the first of them do not see
        (torch.float16, 70, 5, 71),
    ],
)
def test_the_kernel_computes_the_definition(dtype: torch.dtype, window: int, start: int, stop: int):
    queries, keys = tensors(window, 72, dtype)
    count = window * (stop - start)
    positions = [0, 1, count // 2, count // 2 + 1, count - 2, count - 1]
    arguments = (queries, keys, 0.3, start, stop, positions, between_neighbours, [1, 8, 8])
    statistics, hits = kernels.window_statistics(*arguments, backend="triton")
    expected, expected_hits = kernels.window_statistics(*arguments, backend="torch")
    # exp of -25 and below: rounding its argument alone moves it by 25 * 2^-23 = 3e-6
    torch.testing.assert_close(statistics, expected, rtol=5e-6, atol=1e-30)
    for found, wanted in zip(hits, expected_hits, strict=True):
        assert torch.equal(found.long(), wanted)


def test_every_pass_sees_the_same_probabilities():
    """Limits that are order statistics themselves split the values exactly at their ranks."""
    queries, keys = tensors(6, 60)
    count = 6 * 40
    positions = [0, 7, 100, 101, count - 3, count - 1]
    statistics, hits = kernels.window_statistics(
        queries, keys, 0.3, 10, 50, positions, lambda s: s, [1] * len(positions), backend="triton"
    )
    assert (statistics[0, :, 1:] > statistics[0, :, :-1]).all()
    for position, found in zip(positions, hits, strict=True):
        assert found.sum(dim=-1).tolist() == [[count - position] * 2]


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_equal_values_share_their_ranks_and_what_is_hidden_counts_as_zero(backend: str):
    """Equal keys: each query spreads evenly over what it sees, 4 of 8, 5 of 8 ... 8 of 8 keys."""
    queries, keys = tensors(5, 8, torch.float16, heads=1, group=1)
    keys = torch.zeros_like(keys)
    zeros = 4 + 3 + 2 + 1
    positions = [0, zeros - 1, zeros, zeros + 7, zeros + 8, 39]
    statistics, hits = kernels.window_statistics(
        queries, keys, 0.3, 0, 8, positions, lambda s: s[:, [0, 2, 5]], [1, 1, 8], backend=backend
    )
    expected = [0.0, 0.0, 1 / 8, 1 / 8, 1 / 7, 1 / 4]
    assert statistics[0, 0].tolist() == pytest.approx(expected, rel=1e-6)
    assert hits[0][0, 0].tolist() == [5] * 8
    assert hits[1][0, 0].tolist() == [5, 5, 5, 5, 4, 3, 2, 1]
    assert hits[2][0, 0].tolist() == [1]


def test_counts_do_not_depend_on_how_the_keys_are_split(monkeypatch: pytest.MonkeyPatch):
    from catekv.kernels import window_statistics_triton

    queries, keys = tensors(4, 100)
    positions = [0, 200, 201, 399]
    arguments = (queries, keys, 0.3, 0, 100, positions, lambda s: s[:, 1:2], [8])
    whole = kernels.window_statistics(*arguments, backend="triton")
    monkeypatch.setattr(window_statistics_triton, "SPLIT", 64)
    split = kernels.window_statistics(*arguments, backend="triton")
    assert torch.equal(whole[0], split[0])
    assert torch.equal(whole[1][0], split[1][0])


@pytest.mark.parametrize("variant", ["official", "paper"])
def test_calibration_finds_the_same_on_the_kernels(variant: str, monkeypatch: pytest.MonkeyPatch):
    queries, keys = tensors(6, 90)
    base = CVConfig(
        window=6, init_tokens=8, recent_tokens=16, guard_tokens=8, chunk_size=4, variant=variant
    )
    configs = [
        base.with_values(k=k, alpha=alpha, comparison=comparison)
        for k, alpha, comparison in [(0.9, 1.0, "ge"), (0.9, 1.0, "gt"), (0.97, 0.7, "ge")]
    ]
    expected = observation.observe_many(queries, keys, configs)
    monkeypatch.setenv("CATEKV_KERNELS", "triton")
    found = observation.observe_many(queries, keys, configs)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.threshold, theirs.threshold, rtol=2e-6, atol=0)
        assert ours.hits.dtype == theirs.hits.dtype == torch.int64
        assert torch.equal(ours.hits, theirs.hits)
        torch.testing.assert_close(ours.cv, theirs.cv)


def test_ranks_beyond_the_exact_integers_of_fp32():
    """The counts of the digits are integers: 2^24 + 3 equal values and one larger."""
    from catekv.kernels.window_statistics_triton import _digits_of

    counts = torch.zeros(1, 1, 8, dtype=torch.int32)
    counts[0, 0, 2], counts[0, 0, 6] = 2**24 + 3, 1
    ranks = torch.tensor([[0, 2**24 + 2, 2**24 + 3]])
    digits, rest = _digits_of(counts, torch.zeros(1, 3, dtype=torch.int64), ranks)
    assert digits.tolist() == [[2, 2, 6]]
    assert rest.tolist() == [[0, 2**24 + 2, 0]]


def test_definition_counts_queries_that_reach_the_limit():
    queries, keys = tensors(6, 60, torch.float32)
    ((_, attention),) = window_attention(queries, keys, 0.3, 4, 44)
    _, hits = kernels.window_statistics(
        queries, keys, 0.3, 4, 44, [200], lambda s: s.expand(-1, 2), [1, 8]
    )
    limit = attention.flatten(1).sort().values[:, 200, None, None]
    assert torch.equal(hits[0][0], (attention >= limit).sum(dim=1))
    chunks = attention.unflatten(-1, (-1, 8)).amax(dim=-1)
    assert torch.equal(hits[1][0], (chunks >= limit).sum(dim=1))
