"""What codes of eight and four bits mean, how they lie, and how much they take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from catekv.kernels import codes
from catekv.kernels.codes import (
    EIGHT_BITS,
    FORMS,
    GROUP,
    RESIDUAL,
    coded_entries,
    dequantise,
    dequantise_keys,
    dequantise_values,
    group_codes,
    half_of,
    pack_halves,
    quantise,
    quantise_keys,
    quantise_values,
    row_bytes,
)
from catekv.kernels.quantised import quantised
from catekv.kernels.ragged import RaggedPrefix, from_rows

DIM = 8


def normal(*shape: int, scale: float = 10.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * scale


def restored_keys(keys: Tensor, kind: torch.dtype = torch.float32) -> Tensor:
    packed, scales = quantise_keys(keys)
    out = torch.empty(len(packed) // GROUP, GROUP, keys.shape[1], dtype=kind)
    dequantise_keys(packed.unflatten(0, (-1, GROUP)), scales[:, None], out)
    return out.flatten(0, 1)


def restored_values(values: Tensor, kind: torch.dtype = torch.float32) -> Tensor:
    return dequantise_values(*quantise_values(values), torch.empty(values.shape, dtype=kind))


def test_numbers_of_eight_bits_are_within_half_a_step() -> None:
    entries = normal(200, DIM)
    entries[3] = 0
    numbers, scales = quantise(entries, "int8")
    assert (numbers.dtype, scales.shape) == (torch.int8, (200, 1))
    torch.testing.assert_close(
        scales[:, 0], (entries.abs().amax(1) / 127).where(scales[:, 0] != 1, torch.tensor(1.0))
    )
    back = dequantise(numbers, scales, torch.empty_like(entries))
    assert ((back - entries).abs() <= scales / 2 * 1.0001).all()
    assert (back[3] == 0).all()


def test_floats_of_eight_bits_are_within_a_sixteenth() -> None:
    entries = normal(200, DIM)
    numbers, scales = quantise(entries, "fp8")
    assert numbers.dtype == torch.float8_e4m3fn
    back = dequantise(numbers, scales, torch.empty_like(entries))
    allowed = torch.maximum(entries.abs() / 16, scales * 2.0**-10)
    assert ((back - entries).abs() <= allowed * 1.0001).all()


@pytest.mark.parametrize("case", ["methods_2026-kivi-p01", "methods_2026-kivi-p02"])
def test_codes_are_those_of_the_paper(
    case: str, golden: Callable[[str, str], list[dict[str, Any]]]
) -> None:
    (wanted,) = (one for one in golden("methods_2026", "kivi") if one["id"] == case)
    given = wanted["inputs"]
    entries = torch.tensor(given["entries"])
    across = 1 if given["what"] == "keys" else 2
    shape = (-1, given["group"])
    grouped = entries.unflatten(across - 1, shape)
    found, scale, zero = group_codes(grouped, across, given["bits"], torch.float32)
    expected = wanted["expected"]
    assert found.reshape(entries.shape).tolist() == expected["codes"]
    for own, name in ((scale, "scale"), (zero, "zero")):
        torch.testing.assert_close(own.squeeze(across), torch.tensor(expected[name]))
    back = (found * scale + zero).reshape(entries.shape)
    torch.testing.assert_close(back, torch.tensor(expected["restored"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dim", [8, 7, 1])
def test_two_codes_lie_in_a_byte_half_a_head_apart(dim: int) -> None:
    numbers = torch.randint(0, 16, (5, dim), generator=torch.Generator().manual_seed(0))
    packed = pack_halves(numbers.to(torch.uint8))
    half = half_of(dim)
    assert packed.shape == (5, half)
    assert torch.equal((packed & 15).long(), numbers[:, :half])
    assert torch.equal((packed >> 4)[:, : dim - half].long(), numbers[:, half:])


@pytest.mark.parametrize("dim", [8, 7])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_numbers_of_four_bits_are_within_half_a_step(dim: int, offset: float) -> None:
    """And what float16 cannot say of the least number and the scale."""
    entries = normal(4 * GROUP, dim) + offset
    grouped = entries.unflatten(0, (-1, GROUP))
    spread = grouped.amax(1, keepdim=True) - grouped.amin(1, keepdim=True)
    rounding = 2.0**-11 * (grouped.amin(1, keepdim=True).abs() + spread)
    found = restored_keys(entries).unflatten(0, (-1, GROUP))
    assert ((found - grouped).abs() <= spread / 30 * 1.001 + rounding).all()
    for half in (slice(0, half_of(dim)), slice(half_of(dim), dim)):
        part, back = entries[:, half], restored_values(entries)[:, half]
        spread = part.amax(1, keepdim=True) - part.amin(1, keepdim=True)
        rounding = 2.0**-11 * (part.amin(1, keepdim=True).abs() + spread)
        assert ((back - part).abs() <= spread / 30 * 1.001 + rounding).all()


@pytest.mark.parametrize("number", [0.0, -3.5, 1e-30, 70000.0])
def test_groups_of_one_number_come_back_as_it(number: float) -> None:
    """Beyond float16 it is the nearest that there is."""
    entries = torch.full((GROUP, DIM), number)
    expected = entries.clamp(max=65504).half().float()
    assert torch.equal(restored_keys(entries), expected)
    assert torch.equal(restored_values(entries), expected)


def test_scales_lie_as_the_kernel_reads_them() -> None:
    """Scale and least number of a channel, or of half an entry, are one word of 32 bits."""
    entries = normal(2 * GROUP, DIM)
    _, scales = quantise_keys(entries)
    assert (scales.dtype, scales.shape) == (torch.float16, (2, DIM, 2))
    assert scales.is_contiguous()
    grouped = entries.unflatten(0, (-1, GROUP))
    assert torch.equal(scales[..., 1], grouped.amin(1).half())
    _, scales = quantise_values(entries)
    assert (scales.dtype, scales.shape) == (torch.float16, (2 * GROUP, 2, 2))
    assert scales.is_contiguous()
    assert torch.equal(scales[:, 1, 1], entries[:, DIM // 2 :].amin(1).half())


def test_blocks_do_not_change_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = normal(6 * GROUP, DIM)
    functions = (lambda x: quantise(x, "int8"), quantise_keys, quantise_values)
    whole = [function(entries) for function in functions]
    monkeypatch.setattr(codes, "BLOCK_NUMBERS", 7 * DIM)
    for function, wanted in zip(functions, whole, strict=True):
        for first, second in zip(wanted, function(entries), strict=True):
            assert torch.equal(first, second)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(kind: torch.dtype) -> None:
    entries = normal(2 * GROUP, DIM, scale=1.0).to(kind)
    assert torch.equal(restored_keys(entries, kind), restored_keys(entries).to(kind))
    assert torch.equal(restored_values(entries, kind), restored_values(entries).to(kind))
    for form in EIGHT_BITS:
        back = dequantise(*quantise(entries, form), torch.empty_like(entries))
        torch.testing.assert_close(back, entries, rtol=0.08, atol=0.03)


def test_the_newest_entries_and_broken_groups_are_no_codes() -> None:
    found = [coded_entries(length) for length in (0, 1, RESIDUAL, 95, 96, 159, 160, 1000)]
    assert found == [0, 0, 0, 0, 64, 64, 128, 960]


def prefix_of(lengths: list[int], kv_heads: int = 2, dim: int = DIM) -> RaggedPrefix:
    rows, start = [], 0
    for length in lengths:
        rows.append((start, length))
        start += length
    return from_rows(normal(start, dim), normal(start, dim) + 3, None, rows, kv_heads)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lengths", [[1, 0], [31, 64], [200, 33, 97, 0], [500, 500, 90, 90]])
def test_rows_of_any_length_come_back_and_take_what_is_foretold(
    form: str, lengths: list[int]
) -> None:
    prefix = prefix_of(lengths)
    found = quantised(prefix, form)
    whole = found.dequantised()
    for index, length in enumerate(lengths):
        keys, values, _ = found.row(index // 2, index % 2)
        for own, other in zip((keys, values), prefix.row(*divmod(index, 2)), strict=False):
            assert (own.dtype, len(own)) == (torch.float32, length)
            if length:
                assert (own - other).abs().max() < 3
        assert torch.equal(whole.row(*divmod(index, 2))[0], keys)
        if form == "int4":
            exact = slice(coded_entries(length), None)
            assert torch.equal(keys[exact], prefix.row(*divmod(index, 2))[0][exact])
    stored = sum(tensor.nbytes for tensor in found.named_tensors().values())
    assert stored == sum(row_bytes(form, length, (DIM, DIM), 4) for length in lengths)


@pytest.mark.parametrize("form", FORMS)
def test_buckets_hold_what_rows_hold(form: str) -> None:
    """Rows that are viewed, and rows of many lengths, which are gathered."""
    lengths = [300, 300, 64, 64, 1, 7, 140, 33, 200, 96, 5, 77, 190, 0, 11, 250, 251, 252, 253, 2]
    found = quantised(prefix_of(lengths), form)
    assert any(bucket.start is None for bucket in found.buckets)
    assert any(bucket.start is not None for bucket in found.buckets)
    for bucket in found.buckets:
        keys, values, bias = found.read(bucket)
        for number, row in enumerate(bucket.query_rows[:, 0].tolist()):
            own_keys, own_values, _ = found.row(*divmod(row, 2))
            inside = slice(0, len(own_keys))
            assert torch.equal(keys[number, inside], own_keys)
            assert torch.equal(values[number, inside], own_values)
            if bias is not None:
                assert (bias[number, len(own_keys) :] < -1e30).all()


def test_four_bits_take_less_than_a_third_of_sixteen() -> None:
    plain = 2 * 128 * 2
    per_entry = (row_bytes("int4", 4096 + RESIDUAL, (128, 128), 2) - RESIDUAL * plain) / 4096
    assert per_entry == 2 * 64 + 128 * 4 / GROUP + 8
    assert per_entry < plain / 3
