"""What the triton kernels over the observation window share: the softmax statistics of every query,
and the probabilities of one tile of keys.

Softmax statistics take a first pass over the keys; every later pass computes a tile's probabilities
anew instead of storing them. All passes call one function with one tile shape, and it leaves the
compiler no sum or product to fuse as it likes, so that they see the same bits.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from catekv.kernels.variant import Variant, signature
from catekv.kernels.window_scores import HEAD_DIMS

LOG2_E = 1.4426950408889634
#: Names of the types as triton writes them.
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
#: Keys that one program of the first pass reads.
SPLIT = 2048
STRIDES = ("query_b", "query_h", "query_t", "key_b", "key_h", "key_t")


@dataclass(frozen=True)
class Tile:
    """``queries`` of the window by ``keys`` at a time, and the launch options that go with them."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int


def tile_of(head_dim: int, dtype: torch.dtype, queries: int) -> Tile:
    """The tile for a number of queries, by rule and not by search."""
    queries = max(16, triton.next_power_of_2(queries))
    if dtype == torch.float32:
        # products of fp32 numbers take no tensor cores, and all the registers they get
        return Tile(min(queries, 16), 32, 8, 1)
    return Tile(min(queries, 64), 64, 8, 2)


@dataclass(frozen=True, eq=False)
class Window:
    """The observation window over a range of keys, as its kernels read it.

    ``rows`` (sequence, scored KV head) have ``group * window`` queries each; ``tops`` and
    ``factors`` fp32 [rows, group * window] turn a base-2 logit x of such a query into its share of
    the group's mean probability, ``exp2(x - top) * factor``.
    """

    queries: Tensor
    keys: Tensor
    heads: Tensor | None
    scale: float
    start: int
    stop: int
    tops: Tensor
    factors: Tensor

    @property
    def window(self) -> int:
        return self.queries.shape[2]

    @property
    def span(self) -> int:
        return self.stop - self.start

    @property
    def scored(self) -> int:
        """KV heads of a sequence that have a row."""
        return self.keys.shape[1] if self.heads is None else len(self.heads)

    @property
    def rows(self) -> int:
        return self.keys.shape[0] * self.scored

    def tile(self) -> Tile:
        return tile_of(self.keys.shape[3], self.keys.dtype, self.window)

    def pointers(self) -> tuple[Any, ...]:
        """First arguments of every kernel that reads probabilities."""
        return self.queries, self.keys, self.heads, self.tops, self.factors

    def numbers(self) -> tuple[Any, ...]:
        """The arguments after its own pointers, strides last."""
        return (
            self.scale, self.start, self.stop, self.keys.shape[2], self.window, self.scored,
            *self.queries.stride()[:3], *self.keys.stride()[:3],
        )  # fmt: skip

    def constants(self) -> dict[str, Any]:
        tile = self.tile()
        return {
            **_shape(self.queries, self.keys),
            "BLOCK_W": tile.queries,
            "BLOCK_N": tile.keys,
            "num_warps": tile.num_warps,
            "num_stages": tile.num_stages,
        }


def _shape(queries: Tensor, keys: Tensor) -> dict[str, Any]:
    head_dim = keys.shape[3]
    return {
        "GROUP": queries.shape[1] // keys.shape[1],
        "HEAD_DIM": head_dim,
        "BLOCK_D": triton.next_power_of_2(head_dim),
    }


@triton.jit
def row_head(row, heads, scored):
    """(sequence, KV head) of a row, int64."""
    batch = (row // scored).to(tl.int64)
    head = (row % scored).to(tl.int64)
    if heads is not None:
        head = tl.load(heads + head).to(tl.int64)
    return batch, head


@triton.jit
def load_keys(
    keys, batch, head, position, valid, key_b, key_h, key_t,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """[positions, BLOCK_D]; zeros where not ``valid``."""
    column = tl.arange(0, BLOCK_D)[None, :]
    place = keys + batch * key_b + head * key_h + position.to(tl.int64)[:, None] * key_t
    return tl.load(place + column, mask=valid[:, None] & (column < HEAD_DIM), other=0.0)


@triton.jit
def probabilities(
    queries, tops, factors, row, batch, head, first_query, key_tile, position, valid,
    scale, tokens, window, query_b, query_h, query_t,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_W: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Mean probabilities of a group, fp32 [BLOCK_W, BLOCK_N]; 0 where nothing is seen."""
    query = first_query + tl.arange(0, BLOCK_W)
    inside = query < window
    column = tl.arange(0, BLOCK_D)
    base = queries + batch * query_b + head * GROUP * query_h
    transposed = tl.trans(key_tile)
    mean = tl.zeros([BLOCK_W, BLOCK_N], tl.float32)
    for member in range(GROUP):
        tile = tl.load(
            base + query[:, None] * query_t + column[None, :],
            mask=inside[:, None] & (column[None, :] < HEAD_DIM), other=0.0,
        )  # fmt: skip
        # step by step: a head of a long prompt is far from the next
        base += query_h
        entry = (row * GROUP + member) * window + query
        top = tl.load(tops + entry, mask=inside, other=0.0)
        factor = tl.load(factors + entry, mask=inside, other=0.0)
        logits = tl.dot(tile, transposed, input_precision="ieee")
        share = tl.exp2(tl.fma(logits, scale, -top[:, None]))
        mean = tl.fma(share, factor[:, None], mean)
    seen = position[None, :] <= (tokens - window + query)[:, None]
    return tl.where(seen & valid[None, :] & inside[:, None], mean, 0.0)


_FIRST_PASS = [
    "start",
    "stop",
    "tokens",
    "window",
    "scored",
    "splits",
    "per_split",
    "query_tiles",
    "rows",
]


@triton.jit(do_not_specialize=_FIRST_PASS)
def _softmax_statistics(
    queries, keys, heads, partial, scale, start, stop, tokens, window, scored,
    query_b, query_h, query_t, key_b, key_h, key_t, splits, per_split, query_tiles, rows,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Largest base-2 logit and sum of powers of every query over a part of the keys.

    ``partial`` fp32 [2, splits, rows, group * window]. The tiles of queries of one part are
    neighbouring programs, which share its keys in the cache.
    """
    program = tl.program_id(0)
    query_tile = program % query_tiles
    split = (program // query_tiles) % splits
    row = program // query_tiles // splits
    batch, head = row_head(row, heads, scored)

    member = query_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    wanted = member < GROUP * window
    query = member % window
    column = tl.arange(0, BLOCK_D)
    query_head = head * GROUP + member // window
    tile = tl.load(
        queries + batch * query_b + query_head[:, None] * query_h + query[:, None] * query_t
        + column[None, :],
        mask=wanted[:, None] & (column[None, :] < HEAD_DIM), other=0.0,
    )  # fmt: skip
    last_seen = tokens - window + query
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    first = start + split * per_split
    end = tl.minimum(first + per_split, stop)
    for block in range(first, end, BLOCK_N):
        position = block + tl.arange(0, BLOCK_N)
        valid = position < end
        key_tile = load_keys(
            keys, batch, head, position, valid, key_b, key_h, key_t, HEAD_DIM, BLOCK_D
        )
        logits = tl.dot(tile, tl.trans(key_tile), input_precision="ieee")
        seen = valid[None, :] & (position[None, :] <= last_seen[:, None])
        new_top = tl.maximum(top, tl.max(tl.where(seen, logits * scale, float("-inf")), 1))
        # a query that has seen nothing yet must not compute inf - inf
        finite = tl.where(new_top == float("-inf"), 0.0, new_top)
        share = tl.exp2(tl.fma(logits, scale, -finite[:, None]))
        total = total * tl.exp2(top - finite) + tl.sum(tl.where(seen, share, 0.0), 1)
        top = new_top
    size = GROUP * window
    entry = (split * rows + row).to(tl.int64) * size + member
    tl.store(partial + entry, top, mask=wanted)
    tl.store(partial + splits.to(tl.int64) * rows * size + entry, total, mask=wanted)


def window_of(
    queries: Tensor, keys: Tensor, scaling: float, start: int, stop: int, heads: Tensor | None
) -> Window:
    """Compute the softmax statistics; arguments as in :func:`catekv.kernels.window_scores`."""
    shape = _shape(queries, keys)
    window, tokens = queries.shape[2], keys.shape[2]
    scored = keys.shape[1] if heads is None else len(heads)
    rows, size = keys.shape[0] * scored, shape["GROUP"] * window
    scale = scaling * LOG2_E
    splits = max(1, triton.cdiv(stop - start, SPLIT))
    tile = tile_of(keys.shape[3], keys.dtype, size)
    query_tiles = triton.cdiv(size, tile.queries)
    partial = torch.empty(2, splits, rows, size, dtype=torch.float32, device=keys.device)
    _softmax_statistics[(rows * splits * query_tiles,)](
        queries, keys, heads, partial, scale, start, stop, tokens, window, scored,
        *queries.stride()[:3], *keys.stride()[:3], splits, SPLIT, query_tiles, rows,
        **shape, BLOCK_M=tile.queries, BLOCK_N=tile.keys,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    tops = partial[0].amax(dim=0)
    # a query before the whole range sees nothing: its probabilities are 0
    nothing = tops == -torch.inf
    tops = tops.masked_fill(nothing, 0.0)
    total = (partial[1] * torch.exp2(partial[0] - tops)).sum(dim=0)
    factors = (1.0 / (total * shape["GROUP"])).masked_fill_(nothing, 0.0)
    return Window(queries, keys, heads, scale, start, stop, tops, factors)


def built_shapes(narrow: bool = True) -> list[tuple[torch.dtype, int, int, int]]:
    """(dtype, head_dim, group, window) of the variants that are built in advance: every type and
    head dimension, and with ``narrow`` windows of few queries."""
    usual = [(dtype, head_dim, 4, 64) for dtype in TYPES for head_dim in HEAD_DIMS]
    few = [(torch.bfloat16, 128, 1, 16), (torch.bfloat16, 128, 7, 32)]
    return usual + few if narrow else usual


def variant(
    name: str,
    function: Any,
    shape: tuple[torch.dtype, int, int, int],
    types: dict[str, str],
    constants: dict[str, Any],
    tile: Tile,
) -> Variant:
    """One compiled form of a kernel that reads the window."""
    dtype, head_dim, group, window = shape
    constants = {
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "BLOCK_D": triton.next_power_of_2(head_dim),
        **constants,
    }
    names = set(function.arg_names)
    element = f"*{TYPES[dtype]}"
    types = {"queries": element, "keys": element, "heads": "*i64", "scale": "fp32", **types}
    types = {name: kind for name, kind in types.items() if name not in constants}
    types.update(dict.fromkeys(names & {"tops", "factors", "partial"}, "*fp32"))
    pointers = [name for name, kind in types.items() if kind.startswith("*") and name in names]
    return Variant(
        name=f"{name} {TYPES[dtype]} d{head_dim} group {group} window {window}",
        function=function,
        signature=signature(function, types, constants),
        constants=constants,
        divisible=(*pointers, *STRIDES),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def variants() -> list[Variant]:
    """Every compiled form of the first pass."""
    found = []
    for shape in built_shapes():
        tile = tile_of(shape[1], shape[0], shape[2] * shape[3])
        # all heads, or those listed: one form of each
        constants: dict[str, Any] = {"BLOCK_M": tile.queries, "BLOCK_N": tile.keys}
        if shape[2] != 4:
            constants["heads"] = None
        found.append(
            variant("window_scores softmax", _softmax_statistics, shape, {}, constants, tile)
        )
    return found
