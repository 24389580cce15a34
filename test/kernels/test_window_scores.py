"""Scores from the observation window: the kernels against the definition, and methods on them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from catekv import kernels, methods
from catekv.errors import UserError
from catekv.kernels.window_scores import chunk_scores, window_attention
from catekv.methods.head_mask import HeadMask


def tensors(
    heads: int,
    group: int,
    window: int,
    tokens: int,
    head_dim: int = 64,
    dtype: torch.dtype = torch.float16,
    batch: int = 1,
) -> tuple[Tensor, Tensor]:
    """Queries and keys as a model's projections leave them: tokens before heads in memory."""
    generator = torch.Generator().manual_seed(tokens)
    queries = torch.randn(batch, window, heads * group, head_dim, generator=generator)
    keys = torch.randn(batch, tokens, heads, head_dim, generator=generator)
    return queries.to(dtype).transpose(1, 2), keys.to(dtype).transpose(1, 2)


#: heads, group, window, tokens, head_dim, dtype, start, stop, chunk_size, rule
CASES = {
    "chunks of the middle": (
        2, 4, 16, 150, 64, torch.float16, 16, 136, 8, "sum_of_chunk_max",
    ),
    "largest sum, a chunk that is no power of two": (
        1, 3, 5, 100, 96, torch.float16, 3, 100, 5, "max_of_chunk_sum",
    ),
    "more queries than one tile": (
        1, 1, 70, 110, 64, torch.float16, 7, 110, 8, "sum_of_chunk_max",
    ),
    "fp32 tokens": (2, 2, 18, 70, 64, torch.float32, 0, 70, 1, "sum_of_chunk_max"),
    "fp32 chunks": (1, 2, 4, 60, 128, torch.float32, 0, 58, 4, "sum_of_chunk_max"),
    "a wide group and large heads": (
        1, 16, 8, 80, 256, torch.float16, 0, 80, 16, "max_of_chunk_sum",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_computes_the_definition(case: str):
    heads, group, window, tokens, head_dim, dtype, start, stop, chunk_size, rule = CASES[case]
    queries, keys = tensors(heads, group, window, tokens, head_dim, dtype, batch=2)
    # twice the usual scale, so that probabilities differ much
    arguments = (queries, keys, 2 * head_dim**-0.5, start, stop, chunk_size, rule)
    expected = kernels.window_scores(*arguments, backend="torch")
    found = kernels.window_scores(*arguments, backend="triton")
    assert found.shape == (2, heads, -(-(stop - start) // chunk_size))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


def test_the_softmax_joins_many_parts_of_the_keys(monkeypatch: pytest.MonkeyPatch):
    from catekv.kernels import window_triton

    monkeypatch.setattr(window_triton, "SPLIT", 64)
    queries, keys = tensors(1, 2, 8, 300)
    keys[:, :, 290:] *= 8  # the largest logits are in the last part, which early queries do not see
    arguments = (queries, keys, 0.3, 0, 300)
    expected = kernels.window_scores(*arguments, backend="torch")
    found = kernels.window_scores(*arguments, backend="triton")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_query_before_the_range_adds_nothing(backend: str):
    """Of a window of ten only the last three queries reach the keys from 47 on."""
    queries, keys = tensors(1, 1, 10, 50)
    found = kernels.window_scores(queries, keys, 0.2, 47, 50, backend=backend)
    last = kernels.window_scores(queries[:, :, 7:], keys, 0.2, 47, 50, backend="torch")
    torch.testing.assert_close(found, last, rtol=1e-5, atol=1e-9)
    assert found.sum().item() == pytest.approx(3.0, abs=1e-5)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_some_heads_and_some_tokens_give_parts_of_the_whole(backend: str):
    queries, keys = tensors(3, 2, 6, 60, batch=2)
    whole = kernels.window_scores(queries, keys, 0.2, 0, 60, backend=backend)
    heads = torch.tensor([0, 2])
    part = kernels.window_scores(queries, keys, 0.2, 0, 60, scored=54, heads=heads, backend=backend)
    torch.testing.assert_close(part, whole[:, heads, :54], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"head_dim": 40}, "head_dim 40 is none of 64, 96, 128, 256"),
        ({"group": 17}, "more than 16 query heads"),
        ({"chunk_size": 33}, "chunks of 33 tokens"),
        ({"dtype": torch.float64}, "float64"),
    ],
)
def test_what_the_kernel_does_not_support_is_named_and_left_to_torch(change: dict, reason: str):
    given = {"head_dim": 64, "group": 1, "chunk_size": 1, "dtype": torch.float32, **change}
    queries, keys = tensors(1, given["group"], 4, 40, given["head_dim"], given["dtype"])
    arguments = (queries, keys, 0.2, 0, 40, given["chunk_size"])
    with pytest.raises(UserError, match=reason):
        kernels.window_scores(*arguments, backend="triton")
    assert kernels.window_scores(*arguments).isfinite().all()


@pytest.mark.parametrize("rule", ["sum_of_chunk_max", "max_of_chunk_sum"])
def test_definition_pools_the_probabilities(rule: str):
    queries, keys = tensors(2, 2, 6, 60, dtype=torch.float32)
    ((_, attention),) = window_attention(queries, keys, 0.2, 4, 52)
    found = kernels.window_scores(queries, keys, 0.2, 4, 52, 8, rule)
    assert torch.equal(found[0], chunk_scores(attention, 8, rule))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("catekv", {"budget": 56, "init_tokens": 8, "recent_tokens": 16, "guard_tokens": 8}),
        ("catekv", {"budget": 56, "retention": 0.5, "variant": "paper"}),
        ("snapkv", {"budget": 20, "kernel": 5}),
    ],
)
def test_methods_choose_the_same_tokens_on_the_kernel(
    name: str, options: dict, monkeypatch: pytest.MonkeyPatch
):
    """Padding included: a padded sequence is scored without its padding, as on the torch path."""
    if name == "catekv":
        mask = HeadMask(torch.tensor([[True, False, False]]), {"ratio": 0.4})
        options = {**options, "head_mask": mask}
    method = methods.create(name, window=8, **options)
    queries, keys = tensors(3, 2, 8, 120, batch=2)
    valid = torch.ones(2, 120, dtype=torch.bool)
    valid[1, :13] = False
    expected = method.select(queries, keys, keys, valid=valid).keep
    monkeypatch.setenv("CATEKV_KERNELS", "triton")
    found = method.select(queries, keys, keys, valid=valid).keep
    assert expected is not None
    assert found is not None
    assert torch.equal(found, expected)
    assert not found.all()


def test_query_heads_beyond_two_to_the_31_numbers_apart():
    """As in a long prompt with heads before tokens; memory that nobody touches costs nothing."""
    queries, keys = torch.randn(1, 5, 6, 64), torch.randn(1, 1, 50, 64)
    apart = 1 << 29
    far = torch.empty(4 * apart + 6 * 64).as_strided(queries.shape, (1, apart, 64, 1))
    far.copy_(queries)
    near, found = (
        kernels.window_scores(given, keys, 0.25, 4, 40, 8, "sum_of_chunk_max", backend=backend)
        for given, backend in ((queries, "torch"), (far, "triton"))
    )
    torch.testing.assert_close(found, near)
