"""The kernels of a decode step: ``ragged_decode`` and ``append``."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.cases import Case, Result, Stage
from bench.checks.compare import TOLERANCE, checked, relative_error, short_name
from catekv import kernels
from catekv.kernels.ragged import BlockList, RaggedPrefix, from_rows, storage_order

HEAD_DIMS = (64, 96, 128, 256)
GROUPS = (1, 3, 7, 8, 16)
BLOCK_SIZE = 16
_ROWS = (2, 3)


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


#: One new token into a fixed tail, as in a recorded step, is the form all types and extents get.
DECODE = Form(tail=64, used=9)
FORMS = (
    Form("dense tail"),
    Form("tail of one", tail=1),
    Form("padding in the tail", tail=64, used=33, masked=True),
    Form("bias", tail=64, used=9, biased=True),
    Form("block list", tail=64, used=9, listed=True),
    Form("question", query_tokens=9, tail=30, masked=True),
    Form("long question", query_tokens=70, tail=100),
)
#: The interpreter takes seconds for each, and minutes for many query tokens.
TINY_FORMS = ("padding in the tail", "bias", "block list")


def cases(stage: Stage) -> list[Case]:
    """All types, head dimensions and groups in the usual form; all forms for some of them."""
    found: list[Case] = []

    def add(dtype: torch.dtype, head_dim: int, group: int, form: Form) -> None:
        name = f"ragged_decode {short_name(dtype)} d{head_dim} g{group} {form.name}"
        if name not in {case.name for case in found}:
            run = functools.partial(check, stage, name, dtype, head_dim, group, form)
            found.append(Case(name, run, 3.0))

    # half precision of this kind is wrong in the interpreter
    halves = (torch.float16,) if stage.tiny else (torch.bfloat16, torch.float16)
    head_dims = (64, 96) if stage.tiny else HEAD_DIMS
    groups = (3,) if stage.tiny else GROUPS
    for dtype in (*halves, torch.float32):
        for head_dim in head_dims:
            add(dtype, head_dim, 4, DECODE)
    for group in groups:
        add(halves[0], head_dims[-2], group, DECODE)
    for form in (form for form in FORMS if not stage.tiny or form.name in TINY_FORMS):
        add(halves[0], head_dims[-2], 4, form)
        if not stage.tiny:
            add(torch.float32, 64, 2, form)
    for dtype in (*halves, torch.float32):
        name = f"append {short_name(dtype)}"
        found.append(Case(name, functools.partial(check_append, stage, name, dtype), 2.0))
    return found


def lengths(stage: Stage) -> list[int]:
    """Rows of every kind: none, one entry, less and more than a block, one much longer."""
    if stage.tiny:
        return [0, 1, 17, 130, 16, 40]
    return [0, 1, 17, 5000, 128, 60000]


def make_prefix(
    stage: Stage, rows: list[int], kv_heads: int, head_dim: int, dtype: torch.dtype, biased: bool
) -> RaggedPrefix:
    """Random entries, every one drawn."""
    _, where = storage_order(rows)
    shape = (sum(rows), head_dim)
    keys, values = (torch.randn(shape, device=stage.device).to(dtype) for _ in range(2))
    bias = torch.randn(sum(rows), device=stage.device) if biased else None
    return from_rows(keys, values, bias, where, kv_heads)


def block_list(stage: Stage, rows: list[int]) -> BlockList:
    """A random part of the blocks of every row, in random order."""
    most = max(-(-length // BLOCK_SIZE) for length in rows)
    indices = torch.zeros(len(rows), most, dtype=torch.int32)
    counts = torch.zeros(len(rows), dtype=torch.int32)
    for row, length in enumerate(rows):
        blocks = -(-length // BLOCK_SIZE)
        chosen = torch.randperm(blocks)[: max(1, blocks // 3) if blocks else 0]
        indices[row, : len(chosen)] = chosen.int()
        counts[row] = len(chosen)
    return BlockList(indices.to(stage.device), counts.to(stage.device), BLOCK_SIZE)


def check(
    stage: Stage, name: str, dtype: torch.dtype, head_dim: int, group: int, form: Form
) -> Result:
    """The triton kernel and the torch path against the definition on the same numbers.

    The kernel runs again on scratch memory full of NaN: whatever it combines it must have written.
    """
    batch, kv_heads = _ROWS
    rows = lengths(stage)
    prefix = make_prefix(stage, rows, kv_heads, head_dim, dtype, form.biased)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=stage.device).to(dtype)

    queries = draw(batch, kv_heads * group, form.query_tokens, head_dim)
    tail_keys, tail_values = (draw(batch, kv_heads, form.tail, head_dim) for _ in range(2))
    options: dict[str, Any] = {}
    if form.used is not None:
        options["tail_length"] = torch.tensor([form.used], dtype=torch.int32, device=stage.device)
        for tail in (tail_keys, tail_values):
            tail[:, :, form.used :] = 1000.0
    if form.masked:
        mask = torch.ones(batch, 1, 1, form.tail, dtype=torch.bool, device=stage.device)
        mask[1, ..., :7] = False
        options["tail_mask"] = mask
    if form.listed:
        options["blocks"] = block_list(stage, rows)
    scaling = head_dim**-0.5

    def run(backend: str, **more: Any) -> Tensor:
        return kernels.ragged_decode(
            queries, prefix, tail_keys, tail_values, scaling, backend=backend, **options, **more
        )

    exact = from_rows(
        prefix.keys.float(), prefix.values.float(), prefix.bias, prefix.host_rows, kv_heads
    )
    wanted = kernels.ragged_decode(
        queries.float(), exact, tail_keys.float(), tail_values.float(), scaling,
        backend="reference", **options,
    )  # fmt: skip
    workspace = kernels.Workspace()
    first = run("triton", workspace=workspace)
    for tensor in workspace.tensors():
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))
    again = run("triton", workspace=workspace)
    errors = {
        "triton": relative_error(first, wanted),
        "torch": relative_error(run("torch"), wanted),
    }
    result = checked(name, errors, TOLERANCE[dtype], dtype)
    if not torch.equal(first, again):
        result.wrong, result.note = True, "a second run on poisoned scratch memory differs"
    return result


def check_append(stage: Stage, name: str, dtype: torch.dtype) -> Result:
    """Tokens land in their columns, and nothing else changes."""
    worst: dict[str, float] = {"triton": 0.0, "torch": 0.0}
    for head_dim, tokens, used in ((128, 1, 1), (96, 1, 64), (64, 5, 37), (128, 3, 66)):
        buffers = [torch.randn(2, 3, 64, head_dim, device=stage.device).to(dtype) for _ in "kv"]
        # as a model hands them over: tokens before heads in memory
        new = [
            torch.randn(2, tokens, 3, head_dim, device=stage.device).to(dtype).transpose(1, 2)
            for _ in "kv"
        ]
        wanted = [buffer.clone() for buffer in buffers]
        for buffer, entries in zip(wanted, new, strict=True):
            for token in range(tokens):
                column = used - tokens + token
                if 0 <= column < buffer.shape[2]:
                    buffer[:, :, column] = entries[:, :, token]
        length = torch.tensor([used], dtype=torch.int32, device=stage.device)
        for backend in worst:
            own = [buffer.clone() for buffer in buffers]
            kernels.append(own[0], own[1], new[0], new[1], length, backend=backend)
            same = all(torch.equal(a, b) for a, b in zip(own, wanted, strict=True))
            worst[backend] = worst[backend] if same else float("inf")
    return checked(name, worst, 0.0, dtype)
