"""The triton kernel over codes against the definition, in triton's interpreter."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from decode_calls import DecodeCall
from far_apart import far_apart, far_behind
from torch import Tensor

from catekv import kernels
from catekv.kernels import Workspace
from catekv.kernels.codes import EIGHT_BITS, FORMS, GROUP
from catekv.kernels.quantised import Codes, QuantisedPrefix, quantised
from catekv.kernels.quantised_decode import quantised_decode_reference, quantised_decode_torch
from catekv.kernels.ragged import BlockList, from_rows

pytest.importorskip("triton", reason="triton has no package for this platform")

from catekv.kernels.quantised_decode_triton import (
    _VARYING,
    _decode_codes,
    launch_options,
    quantised_decode_triton,
)
from catekv.kernels.ragged_decode_triton import LaunchOptions

#: Few programs, so that programs span rows, and short blocks, so that rows are split.
FEW = LaunchOptions(block=32, num_warps=4, num_stages=2, programs_per_processor=2)
SMALL = replace(FEW, block=16)


@dataclass(frozen=True)
class Case(DecodeCall):
    #: a residual alone, codes and a broken group, nothing, one entry
    lengths: tuple[int, ...] = (100, 40, 0, 170, 1, 96)
    dim: int = 32
    value_dim: int = 32
    form: str = "int4"

    def prefix(
        self, normal: Callable[..., Tensor], logits: Tensor | None, rows: list[tuple[int, int]]
    ) -> QuantisedPrefix:
        # channels around numbers of their own, as keys have them
        keys = normal(sum(self.lengths), self.dim) + normal(self.dim)
        return quantised(self.plain(keys, normal, logits, rows), self.form)


CASES = {
    "ragged": Case(),
    "no prefix at all": Case(lengths=(0,) * 6, tail=20),
    "bias, a soft cap, sinks": Case(bias=True, softcap=0.7, sinks=True),
    "several queries, padding hidden": Case(query_tokens=3, tail=7, hidden=2),
    "length on the device": Case(capacity=40, tail=21),
    "values of another dimension": Case(value_dim=16),
    "odd head dimensions": Case(dim=23, value_dim=17),
    "head dimension 128": Case(lengths=(110, 3), kv_heads=2, dim=128, value_dim=128),
    "many groups": Case(lengths=(600, 3), kv_heads=2),
}
#: What the fast suite has of them.
FAST = [
    *((name, "int4") for name in ("ragged", "no prefix at all", "bias, a soft cap, sinks")),
    ("several queries, padding hidden", "int4"),
    *(("bias, a soft cap, sinks", form) for form in EIGHT_BITS),
]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        pytest.param(name, form, marks=() if (name, form) in FAST else pytest.mark.slow)
        for name in CASES
        for form in FORMS
    ],
)
def test_equals_the_definition(name: str, form: str) -> None:
    arguments = replace(CASES[name], form=form).arguments()
    expected = quantised_decode_reference(**arguments)
    found = quantised_decode_triton(**arguments, options=FEW)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    by_torch = quantised_decode_torch(**arguments, workspace=Workspace())
    torch.testing.assert_close(by_torch, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("form", ["int4", pytest.param("int8", marks=pytest.mark.slow)])
def test_rows_are_split_within_a_group(form: str) -> None:
    arguments = Case((130, 33), kv_heads=1, form=form).arguments()
    expected = quantised_decode_reference(**arguments)
    found = quantised_decode_triton(**arguments, options=SMALL)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("form", FORMS)
def test_equals_the_definition_in_half_precision(form: str) -> None:
    """Values so small that their scales alone would be lost in float16."""
    case = Case((100, 5), 2, dim=64, value_dim=64, dtype=torch.float16, form=form)
    arguments = case.arguments()
    prefix = arguments["prefix"]
    small = prefix.dequantised()
    small = from_rows(small.keys, small.values * 2.0**-12, None, small.host_rows, 2)
    arguments["prefix"] = quantised(small, form)
    arguments["tail_values"] = arguments["tail_values"] * 2.0**-12
    wide = {
        name: value.float() if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }
    exact = quantised_decode_reference(**wide) * 2.0**12
    found = quantised_decode_triton(**arguments).float() * 2.0**12
    # the result itself is rounded where float16 has few digits left
    torch.testing.assert_close(found, exact, rtol=0, atol=4e-3)


def far_codes(prefix: QuantisedPrefix) -> QuantisedPrefix:
    """The same prefix, its last row's codes more than 2^31 numbers behind the first."""
    gap = (1 << 31) // 16
    row = (-1, -1)
    keys, values, plan, places = prefix.keys, prefix.values, prefix.plan, prefix.places
    assert keys.numbers.shape[1] >= 16
    if places is None:
        offsets = plan.offsets.clone()
        plan = replace(plan, offsets=offsets)
        first, group = int(offsets[row]), 1
        offsets[row] += gap
    else:
        places = places.clone()
        first, group = int(places[0][row]), GROUP
        places[0][row] += gap
    return replace(
        prefix,
        plan=plan,
        places=places,
        keys=Codes(
            far_behind(keys.numbers, first, gap),
            far_behind(keys.scales, first // group, gap // group),
        ),
        values=Codes(*(far_behind(x, first, gap) for x in (values.numbers, values.scales))),
    )


@pytest.mark.parametrize("form", ["int4", "int8"])
def test_codes_beyond_two_to_the_31_numbers(form: str) -> None:
    arguments = Case((5, 170), kv_heads=2, form=form).arguments()
    expected = quantised_decode_triton(**arguments, options=FEW)
    prefix = far_codes(arguments.pop("prefix"))
    found = quantised_decode_triton(prefix=prefix, options=FEW, **arguments)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("axis", [1, 2], ids=["heads", "tokens"])
def test_queries_and_tails_beyond_two_to_the_31_numbers(axis: int) -> None:
    case = Case(lengths=(5, 40, 3), query_tokens=3, dtype=torch.float16)
    arguments = case.arguments()
    expected = quantised_decode_triton(**arguments, options=FEW)
    for name in ("queries", "tail_keys", "tail_values"):
        arguments[name] = far_apart(arguments[name], axis)
    assert torch.equal(quantised_decode_triton(**arguments, options=FEW), expected)


def test_the_entry_point_reads_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = Case(lengths=(100, 5), kv_heads=2).arguments()
    expected = quantised_decode_reference(**arguments)
    found = kernels.ragged_decode(**arguments, backend="triton")
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    monkeypatch.setattr(type(arguments["prefix"]), "dequantised", None)
    assert torch.equal(kernels.ragged_decode(**arguments, backend="triton"), found)


def test_blocks_are_read_from_unpacked_entries() -> None:
    """A method that reads pages has a store of its own; what is asked for here still holds."""
    arguments = Case(lengths=(100, 40), kv_heads=2).arguments()
    prefix = arguments.pop("prefix")
    indices, counts = torch.tensor([[0, 3], [1, 0]]).int(), torch.tensor([2, 1]).int()
    arguments["blocks"] = BlockList(indices, counts, 16)
    found = kernels.ragged_decode(prefix=prefix, **arguments)
    expected = kernels.ragged_decode(prefix=prefix.dequantised(), **arguments)
    assert torch.equal(found, expected)


def test_nothing_that_changes_between_steps_or_batches_is_compiled_in() -> None:
    parameters = list(inspect.signature(_decode_codes.fn).parameters.items())
    numbers = [name for name, one in parameters if one.annotation is inspect.Parameter.empty]
    numbers = numbers[numbers.index("scale") + 2 :]
    strides = [name for name in numbers if name.split("_")[0] in ("query", "key", "value")]
    assert set(numbers) - set(strides) | {"query_tokens"} == set(_VARYING)


def test_blocks_of_four_bits_lie_in_a_group() -> None:
    for dim in (64, 96, 128, 256):
        for size, tile in ((2, 16), (2, 64), (4, 16)):
            assert GROUP % launch_options("int4", dim, size, tile).block == 0
