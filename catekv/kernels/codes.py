"""Keys and values in eight or four bits: what the codes mean, and how many bytes they take.

``int8`` and ``fp8`` (e4m3) have a float32 scale for every key and for every value. ``int4`` is
KIVI's scheme (Liu et al., 2024): keys share scale and least number per channel and group of
:data:`GROUP` entries, values per entry and half of the channels, and a row's newest entries stay in
the model's type. A number is ``code * scale + zero``, formed in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Forms of eight bits -> (number type, its largest number).
EIGHT_BITS = {"int8": (torch.int8, 127.0), "fp8": (torch.float8_e4m3fn, 448.0)}
#: All forms.
FORMS = (*EIGHT_BITS, "int4")
#: ``int4``: neighbouring entries whose keys share a scale per channel.
GROUP = 64
#: ``int4``: so many of a row's newest entries are not quantised, and those that fill no group.
RESIDUAL = 32
#: Numbers that are quantised at a time, in float32.
BLOCK_NUMBERS = 1 << 24
#: The largest float16: what scales and least numbers may be.
_LARGEST = 65504.0


def quantise(entries: Tensor, form: str) -> tuple[Tensor, Tensor]:
    """Numbers of eight bits and the scale of every entry.

    ``scale = max |x| / largest`` of the entry (1 for an entry of zeros), ``number = round(x /
    scale)`` to the nearest one of the format, ties to even. ``int8`` is then off by at most half a
    scale; ``fp8`` (e4m3) by at most 1/16 of the number, or 2**-10 scales near zero.

    Args:
        entries: [slots, dim].
        form: ``int8`` or ``fp8``.

    Returns:
        [slots, dim] in the format, float32 scales [slots, 1].
    """
    kind, largest = EIGHT_BITS[form]
    numbers = torch.empty(entries.shape, dtype=kind, device=entries.device)
    scales = torch.empty(len(entries), 1, dtype=torch.float32, device=entries.device)
    step = max(1, BLOCK_NUMBERS // max(1, entries.shape[-1]))
    for start in range(0, len(entries), step):
        block = entries[start : start + step].float()
        scale = block.abs().amax(dim=-1, keepdim=True) / largest
        scale = torch.where(scale > 0, scale, 1.0)
        block = (block / scale).clamp_(-largest, largest)
        numbers[start : start + step] = block.round_() if form == "int8" else block
        scales[start : start + step] = scale
    return numbers, scales


def dequantise(numbers: Tensor, scales: Tensor, out: Tensor) -> Tensor:
    """Write ``numbers * scales`` into ``out`` [..., dim]; the product is formed in float32 and
    rounded once to the type of ``out``. Returns ``out``."""
    return out.copy_(numbers).mul_(scales)


def coded_entries(length: int) -> int:
    """How many of a row's ``length`` entries ``int4`` quantises, its oldest ones: whole groups."""
    return max(0, length - RESIDUAL) // GROUP * GROUP


def group_codes(
    entries: Tensor, dim: int, bits: int = 4, kind: torch.dtype = torch.float16
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of groups that lie along one dimension.

    ``zero`` is the least number of a group, ``scale = (largest - zero) / (2**bits - 1)``, both
    rounded to ``kind``; ``code = round((x - zero) / scale)``, ties to even, 0 where the scale is 0.
    ``x`` is then off by at most half a scale, and what rounding ``zero`` and ``scale`` moved.

    Args:
        entries: float32, the groups along ``dim``.
        kind: type of scales and least numbers.

    Returns:
        uint8 codes like the entries; scale and zero, with one number along ``dim``.
    """
    most = (1 << bits) - 1
    least, largest = entries.amin(dim, keepdim=True), entries.amax(dim, keepdim=True)
    bound = _LARGEST if kind == torch.float16 else torch.finfo(kind).max
    zero = least.clamp(-bound, bound).to(kind)
    scale = ((largest - least) / most).clamp(max=bound).to(kind)
    wide = scale.float()
    codes = (entries - zero.float()) / torch.where(wide > 0, wide, 1.0)
    codes = codes.round_().clamp_(0, most).masked_fill_(wide == 0, 0)
    return codes.to(torch.uint8), scale, zero


def half_of(dim: int) -> int:
    """Channels whose codes lie in the low bits of an entry's bytes: the first half."""
    return -(-dim // 2)


def pack_halves(codes: Tensor) -> Tensor:
    """Two codes a byte, uint8 [..., half_of(dim)]: channel i in the low four bits, channel i +
    half in the high ones (0 where there is none)."""
    half = half_of(codes.shape[-1])
    packed = codes[..., :half].clone()
    packed[..., : codes.shape[-1] - half] |= codes[..., half:] << 4
    return packed


def quantise_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Keys [slots, dim] of whole groups as ``int4``.

    Returns:
        uint8 [slots, half_of(dim)], float16 [slots / GROUP, dim, 2]: scale and least number of
        every group's channels.
    """
    slots, dim = keys.shape
    packed = torch.empty(slots, half_of(dim), dtype=torch.uint8, device=keys.device)
    scales = torch.empty(slots // GROUP, dim, 2, dtype=torch.float16, device=keys.device)
    step = max(1, BLOCK_NUMBERS // max(1, dim * GROUP))
    for start in range(0, len(scales), step):
        part = slice(start * GROUP, (start + step) * GROUP)
        codes, scale, zero = group_codes(keys[part].float().unflatten(0, (-1, GROUP)), 1)
        packed[part] = pack_halves(codes).flatten(0, 1)
        scales[start : start + step] = torch.cat([scale, zero], dim=1).transpose(1, 2)
    return packed, scales


def quantise_values(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values [slots, dim] as ``int4``.

    Returns:
        uint8 [slots, half_of(dim)], float16 [slots, 2, 2]: scale and least number of the first
        half of every entry's channels and of the second.
    """
    slots, dim = values.shape
    half = half_of(dim)
    packed = torch.empty(slots, half, dtype=torch.uint8, device=values.device)
    scales = torch.zeros(slots, 2, 2, dtype=torch.float16, device=values.device)
    step = max(1, BLOCK_NUMBERS // max(1, dim))
    for start in range(0, slots, step):
        part = slice(start, start + step)
        block, codes = values[part].float(), []
        for which, channels in enumerate((slice(0, half), slice(half, dim))):
            if channels.start == dim:
                continue
            own, scale, zero = group_codes(block[:, channels], 1)
            codes.append(own)
            scales[part, which] = torch.cat([scale, zero], dim=1)
        packed[part] = pack_halves(torch.cat(codes, dim=1))
    return packed, scales


def dequantise_keys(packed: Tensor, scales: Tensor, out: Tensor) -> Tensor:
    """Write keys into ``out`` [..., dim]; ``packed`` [..., half], ``scales`` [..., dim, 2] are
    broadcast over the entries of a group. Rounded once to the type of ``out``, which is returned.
    """
    scale, zero = (part.contiguous() for part in scales.float().unbind(-1))
    return _write(packed, scale, zero, out)


def dequantise_values(packed: Tensor, scales: Tensor, out: Tensor) -> Tensor:
    """Write values into ``out`` [..., dim]; ``packed`` [..., half], ``scales`` [..., 2, 2].
    Rounded once to the type of ``out``, which is returned."""
    wide = scales.float()[..., None].expand(*scales.shape, packed.shape[-1])
    scale, zero = (
        part.flatten(-2)[..., : out.shape[-1]] for part in (wide[..., 0, :], wide[..., 1, :])
    )
    return _write(packed, scale, zero, out)


def _write(packed: Tensor, scale: Tensor, zero: Tensor, out: Tensor) -> Tensor:
    # in one piece each: torch takes three times as long over halves of rows
    codes = torch.stack([packed & 15, packed >> 4], dim=-2).flatten(-2)[..., : out.shape[-1]]
    if out.dtype == torch.float32:
        return out.copy_(codes).mul_(scale).add_(zero)
    return out.copy_(codes.float().mul_(scale).add_(zero))


def row_bytes(form: str, entries: float, dims: tuple[int, int], element_bytes: int) -> float:
    """Bytes of a row's keys and values in a form, scales and residual included.

    Args:
        entries: of the row; a mean over rows is taken for the length of all of them.
        dims: channels of keys and of values.
        element_bytes: of a number in the model's type.
    """
    keys, values = dims
    if form in EIGHT_BITS:
        scales = 2 * 4
        return entries * (keys + values + scales)
    coded = coded_entries(int(entries))
    codes = coded * (half_of(keys) + half_of(values))
    scales = coded // GROUP * keys * 2 * 2 + coded * 2 * 2 * 2
    return codes + scales + (entries - coded) * (keys + values) * element_bytes
