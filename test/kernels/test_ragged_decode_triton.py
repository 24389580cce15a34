"""The triton decode kernel against the definition, in triton's interpreter (fp32 and fp16)."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from decode_calls import DecodeCall
from torch import Tensor

from catekv import kernels
from catekv.errors import UserError
from catekv.kernels import Workspace, ragged_decode_reference

pytest.importorskip("triton", reason="triton has no package for this platform")

from catekv.kernels.ragged_decode_triton import (
    _VARYING,
    LaunchOptions,
    _decode,
    _reduce,
    launch_options,
    prefix_programs_of,
    ragged_decode_triton,
)

#: Small blocks and few programs, so that short rows are split and programs span rows.
SMALL = LaunchOptions(block=16, num_warps=4, num_stages=2, programs_per_processor=2)
RAGGED = [200, 4, 0, 30, 100, 7]


@dataclass(frozen=True)
class Case(DecodeCall):
    lengths: tuple[int, ...] = tuple(RAGGED)

    @staticmethod
    def widened(arguments: dict[str, Any]) -> dict[str, Any]:
        """The same numbers in float32."""
        return {
            name: value.float() if isinstance(value, Tensor) else value
            for name, value in arguments.items()
        }


CASES = {
    "ragged": Case(),
    "one token in the tail": Case(tail=1),
    "no prefix at all": Case(lengths=(0,) * 6, tail=70),
    "equal rows": Case(lengths=(50,) * 6),
    "one long row beside short ones": Case(lengths=(500, 3, 3), group=1),
    "bias": Case(bias=True),
    "several queries": Case(query_tokens=4, tail=9),
    "several queries, padding hidden": Case(query_tokens=3, tail=7, hidden=2),
    "length on the device": Case(capacity=40, tail=21),
    "length on the device, several queries, padding, bias": Case(
        capacity=90, tail=70, query_tokens=3, hidden=4, bias=True
    ),
    "blocks": Case(blocks=True),
    "blocks, bias, length on the device": Case(blocks=True, bias=True, capacity=80, tail=66),
    "blocks of an empty prefix": Case(lengths=(0,) * 6, blocks=True, tail=20),
    "group of 16": Case(lengths=(60, 9), kv_heads=2, group=16),
    "more queries than a tile": Case(lengths=(40,), kv_heads=1, group=4, query_tokens=10, tail=12),
    "head dimension 96": Case(dim=96, value_dim=96),
    "head dimension 128": Case(dim=128, value_dim=128),
    "head dimension 256": Case(lengths=(70, 5, 0), dim=256, value_dim=256),
    "values of another dimension": Case(value_dim=32),
    "a soft cap": Case(softcap=0.7),
    "a large soft cap, several queries": Case(softcap=50.0, query_tokens=3, tail=7, hidden=2),
    "a soft cap, bias, values of another dimension": Case(softcap=0.7, bias=True, value_dim=32),
    "a soft cap, blocks": Case(softcap=0.7, blocks=True, capacity=80, tail=66),
    "sinks": Case(sinks=True),
    "sinks, several queries, padding hidden": Case(sinks=True, query_tokens=3, tail=7, hidden=2),
    "sinks, a soft cap, blocks": Case(sinks=True, softcap=0.7, blocks=True),
    "odd head dimension": Case(dim=24, value_dim=24),
}


#: Take the interpreter longest, and combine what other cases have one by one.
LONG_CASES = {
    "equal rows",
    "group of 16",
    "head dimension 96",
    "head dimension 256",
    "several queries, padding hidden",
    "a large soft cap, several queries",
    "sinks, several queries, padding hidden",
    "sinks, a soft cap, blocks",
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=pytest.mark.slow if name in LONG_CASES else ())
        for name, case in CASES.items()
    ],
)
def test_equals_the_definition(case: Case):
    arguments = case.arguments()
    expected = ragged_decode_reference(**arguments)
    found = ragged_decode_triton(**arguments, options=SMALL)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_equals_the_definition_in_half_precision(head_dim: int):
    case = Case((70, 5, 0), dim=head_dim, value_dim=head_dim, dtype=torch.float16)
    arguments = case.arguments()
    exact = ragged_decode_reference(**Case.widened(arguments))
    torch.testing.assert_close(ragged_decode_triton(**arguments).float(), exact, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    "query_tokens",
    [
        pytest.param(9, id="in one large tile", marks=pytest.mark.slow),
        pytest.param(17, id="in two", marks=pytest.mark.slow),
    ],
)
def test_many_queries_in_half_precision_equal_the_definition(query_tokens: int):
    case = Case((140, 0), 2, 4, query_tokens=query_tokens, tail=20, dtype=torch.float16)
    arguments = case.arguments()
    exact = ragged_decode_reference(**Case.widened(arguments))
    torch.testing.assert_close(ragged_decode_triton(**arguments).float(), exact, rtol=0, atol=2e-3)


def test_long_questions_read_the_prefix_once_for_64_queries(monkeypatch: pytest.MonkeyPatch):
    """And every launch takes what the chip holds of its tiles."""
    launched: list[tuple[int, ...]] = []

    class Launcher:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *arguments, **options: launched.append((*grid, options.get("BLOCK_M", 0)))

    for name in ("_decode", "_reduce"):
        monkeypatch.setattr(f"catekv.kernels.ragged_decode_triton.{name}", Launcher())
    case = Case((900, 4), 2, 4, dim=128, value_dim=128, query_tokens=100, dtype=torch.bfloat16)
    ragged_decode_triton(**case.arguments())
    (_, tiles, tile), _ = launched
    assert (tiles, tile) == (7, 64)


@pytest.mark.parametrize(
    ("resident", "rows", "prefix"),
    [(264, 8, 256), (264, 66, 198), (264, 67, 264), (264, 400, 264), (1, 2, 1)],
)
def test_the_tail_leaves_the_prefix_the_chip(resident: int, rows: int, prefix: int):
    """A batch of 50 has 400 rows: their tails must not take a quarter of the chip."""
    assert prefix_programs_of(resident, rows) == prefix


def test_nothing_that_changes_between_steps_or_batches_is_compiled_in():
    names = list(inspect.signature(_decode.fn).parameters.items())
    numbers = [name for name, one in names if one.annotation is inspect.Parameter.empty]
    numbers = numbers[numbers.index("scale") + 2 :]
    strides = [name for name in numbers if name.split("_")[0] in ("query", "key", "value")]
    changing = set(numbers) - set(strides) | {"query_tokens"}
    assert changing == set(_VARYING)


def test_queries_beyond_two_to_the_31_numbers_apart():
    """Memory that nobody touches costs nothing: only the pages of the queries themselves exist."""
    case = Case((40, 7), 2, 1, query_tokens=5, tail=9)
    arguments = case.arguments()
    wanted = ragged_decode_triton(**arguments)
    queries = arguments["queries"]
    apart = 1 << 29
    room = torch.empty(4 * apart + 2 * 64, dtype=torch.float32)
    far = room.as_strided(queries.shape, (1, 64, apart, 1))
    far.copy_(queries)
    assert (queries.shape[2] - 1) * far.stride(2) >= 1 << 31
    found = ragged_decode_triton(**{**arguments, "queries": far})
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_results_beyond_two_to_the_31_numbers_apart():
    """The reduction alone: a result of that size takes hours to compute."""
    tokens, dim, apart = 5, 32, 1 << 29
    partial, log_sums = torch.randn(tokens, dim), torch.zeros(tokens)
    output = torch.empty(4 * apart + dim).as_strided((1, 1, tokens, dim), (1, dim, apart, 1))
    starts = torch.zeros(2, dtype=torch.int32)
    _reduce[(tokens, 1)](
        partial, log_sums, starts, None, None, None, output, 1, 1, 16, 1, 0, 0, 1, tokens,
        *output.stride()[:3],
        KV_HEADS=1, GROUP=1, VALUE_DIM=dim, COLUMNS=32, LIST_SIZE=0, DEVICE_LENGTH=False,
        SEGMENTS=32,
    )  # fmt: skip
    torch.testing.assert_close(output[0, 0], partial)


def test_the_options_of_real_launches_give_the_same():
    arguments = Case(lengths=(300, 70, 0)).arguments()
    torch.testing.assert_close(
        kernels.ragged_decode(**arguments, backend="triton"),
        ragged_decode_reference(**arguments),
        rtol=0,
        atol=2e-6,
    )


def test_a_workspace_is_reused_and_its_contents_do_not_matter():
    arguments = Case().arguments()
    workspace = Workspace()
    expected = ragged_decode_triton(**arguments, options=SMALL, workspace=workspace).clone()
    held = {tensor.data_ptr() for tensor in workspace.tensors()}
    for tensor in workspace.tensors():
        tensor.fill_(torch.nan)
    again = ragged_decode_triton(**arguments, options=SMALL, workspace=workspace)
    torch.testing.assert_close(again, expected, rtol=0, atol=0)
    assert {tensor.data_ptr() for tensor in workspace.tensors()} == held


def test_the_result_lies_in_memory_as_the_output_projection_reads_it():
    found = ragged_decode_triton(**Case(query_tokens=2).arguments(), options=SMALL)
    assert found.transpose(1, 2).is_contiguous()


def test_what_lies_behind_the_tail_is_never_read():
    arguments = Case(capacity=40, tail=21).arguments()
    expected = ragged_decode_triton(**arguments, options=SMALL)
    for name in ("tail_keys", "tail_values"):
        arguments[name][:, :, 21:] = torch.nan
    torch.testing.assert_close(
        ragged_decode_triton(**arguments, options=SMALL), expected, rtol=0, atol=0
    )


def test_the_environment_forces_a_backend(monkeypatch: pytest.MonkeyPatch):
    arguments = Case(lengths=(9, 4, 2)).arguments()
    monkeypatch.setenv("CATEKV_KERNELS", "triton")
    by_triton = kernels.ragged_decode(**arguments)
    assert by_triton.transpose(1, 2).is_contiguous()
    monkeypatch.setenv("CATEKV_KERNELS", "reference")
    torch.testing.assert_close(kernels.ragged_decode(**arguments), by_triton, rtol=0, atol=2e-6)
    monkeypatch.setenv("CATEKV_KERNELS", "cuda")
    with pytest.raises(UserError, match="unknown kernel backend 'cuda'"):
        kernels.ragged_decode(**arguments)


def test_triton_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(UserError, match="TRITON_INTERPRET=1 is not set"):
        kernels.ragged_decode(**Case().arguments(), backend="triton")


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (Case((9, 4, 2), dtype=torch.float64), "not with torch.float64"),
        (Case((9, 4, 2), dim=272, value_dim=272), "272 dimensions are more than 256"),
    ],
    ids=["float64", "wide heads"],
)
def test_what_the_kernel_is_not_built_for_takes_the_torch_path(case: Case, reason: str):
    arguments = case.arguments()
    torch.testing.assert_close(
        kernels.ragged_decode(**arguments), ragged_decode_reference(**arguments)
    )
    with pytest.raises(UserError, match=reason):
        kernels.ragged_decode(**arguments, backend="triton")


def test_two_programs_of_every_half_precision_launch_fit_into_a_multiprocessor():
    for head_dim in (64, 96, 128, 256):
        options = launch_options(head_dim, 2, 16)
        padded = 128 if head_dim == 96 else head_dim
        in_flight = (options.num_stages - 1) * 2 * options.block * padded * 2
        assert options.programs_per_processor * in_flight <= 160 * 1024
