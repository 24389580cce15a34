"""``ragged_decode`` and ``append`` in every form, against their definitions in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from gpu import DEVICE, HALVES, TINY, TOLERANCE, TYPES, relative_error, short_name
from torch import Tensor

from catekv import kernels
from catekv.kernels.logits import LogitForm
from catekv.kernels.ragged import BlockList, RaggedPrefix, from_rows, storage_order

BATCH, KV_HEADS, BLOCK_SIZE = 2, 3, 16
#: Rows of every kind: none, one entry, less and more than a block, one much longer.
ROWS = [0, 1, 17, 130, 16, 40] if TINY else [0, 1, 17, 5000, 128, 60000]


@dataclass(frozen=True)
class Form:
    """What one launch is given besides queries, prefix and tail."""

    name: str = "decode"
    query_tokens: int = 1
    tail: int = 40
    used: int | None = None
    masked: bool = False
    biased: bool = False
    listed: bool = False
    capped: bool = False
    sinks: bool = False


#: One new token into a fixed tail, as in a recorded step, is the form all types and extents get.
DECODE = Form(tail=64, used=9)
FORMS = (
    Form("dense tail"),
    Form("tail of one", tail=1),
    Form("padding in the tail", tail=64, used=33, masked=True),
    Form("bias", tail=64, used=9, biased=True),
    Form("block list", tail=64, used=9, listed=True),
    Form("soft cap and sinks", tail=64, used=9, capped=True, sinks=True),
    Form("question", query_tokens=9, tail=30, masked=True),
    Form("long question", query_tokens=70, tail=100),
)
HEAD_DIMS = (64, 96) if TINY else (64, 96, 128, 256)
#: The interpreter takes seconds for each, and minutes for many query tokens.
SOME_FORMS = FORMS[2:6] if TINY else FORMS
CASES = [
    *((dtype, dim, 4, DECODE) for dtype in TYPES for dim in HEAD_DIMS),
    *((HALVES[0], HEAD_DIMS[-2], group, DECODE) for group in ((3,) if TINY else (1, 3, 7, 8, 16))),
    *((HALVES[0], HEAD_DIMS[-2], 4, form) for form in SOME_FORMS),
    *((torch.float32, 64, 2, form) for form in SOME_FORMS if not TINY),
]


def make_prefix(
    rows: list[int], kv_heads: int, head_dim: int, dtype: torch.dtype, biased: bool = False
) -> RaggedPrefix:
    """Random entries, every one drawn."""
    _, where = storage_order(rows)
    shape = (sum(rows), head_dim)
    keys, values = (torch.randn(shape, device=DEVICE).to(dtype) for _ in range(2))
    bias = torch.randn(sum(rows), device=DEVICE) if biased else None
    return from_rows(keys, values, bias, where, kv_heads)


def block_list(rows: list[int]) -> BlockList:
    """A random part of the blocks of every row, in random order."""
    counts = [-(-length // BLOCK_SIZE) for length in rows]
    indices = torch.zeros(len(rows), max(counts), dtype=torch.int32)
    wanted = [max(1, count // 3) if count else 0 for count in counts]
    for row, (count, some) in enumerate(zip(counts, wanted, strict=True)):
        indices[row, :some] = torch.randperm(count)[:some].int()
    lengths = torch.tensor(wanted, dtype=torch.int32, device=DEVICE)
    return BlockList(indices.to(DEVICE), lengths, BLOCK_SIZE)


def options_of(form: Form, tails: list[Tensor], query_heads: int) -> dict[str, Any]:
    """Arguments of the form; what lies behind the used columns of the tails must not be read."""
    found: dict[str, Any] = {}
    if form.used is not None:
        found["tail_length"] = torch.tensor([form.used], dtype=torch.int32, device=DEVICE)
        for tail in tails:
            tail[:, :, form.used :] = 1000.0
    if form.masked:
        mask = torch.ones(BATCH, 1, 1, form.tail, dtype=torch.bool, device=DEVICE)
        mask[1, ..., :7] = False
        found["tail_mask"] = mask
    if form.listed:
        found["blocks"] = block_list(ROWS)
    if form.capped or form.sinks:
        sinks = torch.randn(query_heads, device=DEVICE) if form.sinks else None
        found["form"] = LogitForm(softcap=3.0 if form.capped else None, sinks=sinks)
    return found


@pytest.mark.parametrize(("dtype", "head_dim", "group", "form"), CASES, ids=short_name)
def test_decode(dtype: torch.dtype, head_dim: int, group: int, form: Form) -> None:
    """The kernel runs again on scratch memory full of NaN: it combines what it has written."""
    prefix = make_prefix(ROWS, KV_HEADS, head_dim, dtype, form.biased)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=DEVICE).to(dtype)

    queries = draw(BATCH, KV_HEADS * group, form.query_tokens, head_dim)
    tails = [draw(BATCH, KV_HEADS, form.tail, head_dim) for _ in "kv"]
    options = options_of(form, tails, KV_HEADS * group)
    scaling = head_dim**-0.5

    def run(backend: str, **more: Any) -> Tensor:
        return kernels.ragged_decode(
            queries, prefix, *tails, scaling, backend=backend, **options, **more
        )

    exact = from_rows(
        prefix.keys.float(), prefix.values.float(), prefix.bias, prefix.host_rows, KV_HEADS
    )
    wanted = kernels.ragged_decode(
        queries.float(), exact, *(tail.float() for tail in tails), scaling, backend="reference",
        **options,
    )  # fmt: skip
    workspace = kernels.Workspace()
    first = run("triton", workspace=workspace)
    for tensor in workspace.tensors():
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))
    assert torch.equal(first, run("triton", workspace=workspace)), "depends on scratch memory"
    assert relative_error(first, wanted) <= TOLERANCE[dtype]
    assert relative_error(run("torch"), wanted) <= TOLERANCE[dtype]


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("dtype", TYPES, ids=short_name)
@pytest.mark.parametrize(
    ("head_dim", "tokens", "used"), [(128, 1, 1), (96, 1, 64), (64, 5, 37), (128, 3, 66)]
)
def test_append(head_dim: int, tokens: int, used: int, dtype: torch.dtype, backend: str) -> None:
    """Tokens land in their columns, and nothing else changes."""
    buffers = [torch.randn(2, 3, 64, head_dim, device=DEVICE).to(dtype) for _ in "kv"]
    # as a model hands them over: tokens before heads in memory
    new = [
        torch.randn(2, tokens, 3, head_dim, device=DEVICE).to(dtype).transpose(1, 2) for _ in "kv"
    ]
    wanted = [buffer.clone() for buffer in buffers]
    for buffer, entries in zip(wanted, new, strict=True):
        for token in range(tokens):
            column = used - tokens + token
            if 0 <= column < buffer.shape[2]:
                buffer[:, :, column] = entries[:, :, token]
    length = torch.tensor([used], dtype=torch.int32, device=DEVICE)
    kernels.append(*buffers, *new, length, backend=backend)
    for found, expected in zip(buffers, wanted, strict=True):
        assert torch.equal(found, expected)
